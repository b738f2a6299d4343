"""Score processors of transformers: told apart, and wrapped for the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from bild.errors import InputError

WARPERS = tuple(
    getattr(logits_process, f"{name}LogitsWarper")
    for name in ("Temperature", "TopH", "TopK", "TopP", "MinP", "Typical", "Epsilon", "Eta")
)
"""What shapes a draw, looking at scores alone."""
STATEFUL = (
    logits_process.ClassifierFreeGuidanceLogitsProcessor,
    logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    logits_process.SynthIDTextWatermarkLogitsProcessor,
)
"""What runs or remembers something of its own at every call, which a rollback cannot undo."""


def process_with(
    chain: LogitsProcessorList, ids: Callable[[Sequence[int]], Tensor]
) -> Callable[[Sequence[int], Tensor], Tensor] | None:
    """A chain as a :class:`~bild.decoding.Request` takes it, None where it is empty.

    Args:
        chain: applied in order.
        ids: the tokens ``[1, T]`` it is shown for a prefix.
    """
    if not chain:
        return None

    def process(prefix: Sequence[int], logits: Tensor) -> Tensor:
        # transformers asks for a LongTensor, which is a Tensor of whole numbers to everybody but type checkers.
        shown: Any = ids(prefix)
        return _applied(chain, shown, logits.unsqueeze(0).to(shown.device))[0].to(logits.device)

    return process


def warp_with(chain: LogitsProcessorList) -> Callable[[Tensor], Tensor] | None:
    """A chain of warpers as one function of ``logits`` ``[N, V]``, None where it is empty."""
    # Warpers look at scores alone; the token ids they are handed go unread.
    unread: Any = torch.empty(0, dtype=torch.long)
    quick = [_quick(each) for each in chain]
    return (lambda logits: _applied(quick, unread, logits)) if chain else None


def _applied(chain: Sequence[Any], ids: Tensor, scores: Tensor) -> Tensor:
    """Scores as a chain leaves them. A :class:`LogitsProcessorList` looks up each one's signature at every call, which
    takes longer than most of them do."""
    for each in chain:
        scores = each(ids, scores)
    return scores


class TopP(logits_process.TopPLogitsWarper):
    """Top-p without sorting the vocabulary, which takes a CPU longer than a small model's step."""

    first = 64
    """Candidates looked at before more are."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # A GPU sorts fast, and asking how many candidates are enough would make it wait.
        if scores.device.type != "cpu":
            sorted_out: Tensor = super().__call__(input_ids, scores)
            return sorted_out
        count, total = self.first, scores.logsumexp(-1, keepdim=True)
        while True:
            best = scores.topk(min(count, scores.shape[-1]))
            share = (best.values - total).exp()
            # As transformers has it: a token stays while those above it hold less than top_p.
            above = share.cumsum(-1) - share
            if count >= scores.shape[-1] or bool((above[..., -1] >= self.top_p).all()):
                break
            count *= 8
        above[..., : self.min_tokens_to_keep] = 0
        kept = best.values.masked_fill(above >= self.top_p, self.filter_value)
        return torch.full_like(scores, self.filter_value).scatter_(-1, best.indices, kept)


def _quick(warper: Any) -> Any:
    """A warper that does the same in less time, or itself."""
    if type(warper) is not logits_process.TopPLogitsWarper:
        return warper
    return TopP(warper.top_p, warper.filter_value, warper.min_tokens_to_keep)


def split(chain: Sequence[Any]) -> tuple[LogitsProcessorList, LogitsProcessorList]:
    """What applies to both models before anything is compared, and, from the first warper on, what shapes a draw.

    Raises:
        InputError: a processor after a warper, which would see warped scores.
    """
    first = next((place for place, each in enumerate(chain) if isinstance(each, WARPERS)), len(chain))
    for late in chain[first:]:
        if not isinstance(late, (*WARPERS, logits_process.LogitNormalization)):
            before = type(chain[first]).__name__
            raise InputError(f"{type(late).__name__} comes after {before} and would see warped scores; put it before")
    return LogitsProcessorList(chain[:first]), LogitsProcessorList(chain[first:])


def of_row(processor: Any, row: int, rows: int) -> Any:
    """A processor that looks the rows of a batch up by their place, for one row alone; others as they are.

    Args:
        processor: made for a whole batch.
        row: which of its rows.
        rows: how many there are; several in a row share a source where that many texts of each are asked for.
    """
    own: Any = copy(processor)
    if isinstance(own, logits_process.RepetitionPenaltyLogitsProcessor):
        if isinstance(own.prompt_ignore_length, Tensor):
            # A beam search has one for every hypothesis.
            first = row * len(own.prompt_ignore_length) // rows
            own.prompt_ignore_length = own.prompt_ignore_length[first : first + 1]
    elif isinstance(own, logits_process.EncoderRepetitionPenaltyLogitsProcessor):
        source = row * len(own.encoder_input_ids) // rows
        own.encoder_input_ids = own.encoder_input_ids[source : source + 1]  # type: ignore[assignment]
    elif isinstance(own, logits_process.EncoderNoRepeatNGramLogitsProcessor):
        own.generated_ngrams, own.batch_size = [own.generated_ngrams[row * own.batch_size // rows]], 1
    elif isinstance(own, logits_process.PrefixConstrainedLogitsProcessor):
        own._num_beams = 1
        own._prefix_allowed_tokens_fn = lambda _, ids: processor._prefix_allowed_tokens_fn(row, ids)
    else:
        return processor
    return own
