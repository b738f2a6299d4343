"""One batch being read uncompiled, on storage of our own (:mod:`bild.models.cache`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache, PreTrainedModel

from bild.decoding.scores import Summary, widened
from bild.decoding.transfer import to_device
from bild.models.cache import COLUMNS, RowCache, Shape
from bild.models.eager.cache import cache_over
from bild.models.eager.sources import Encoded, Sources
from bild.models.passes import Placed, Source, check_last, masks, numbers_of, pad, placed, run
from bild.models.seams import Pass
from bild.models.short_list import spread

if TYPE_CHECKING:
    from bild.models.compiled.scorer import CompiledScorer
    from bild.models.eager.model import EagerModel


P = ParamSpec("P")
T = TypeVar("T")


def inferring(function: Callable[P, T]) -> Callable[P, T]:
    """Run a method in inference mode; entering it costs as much as a small matrix product, so not twice."""

    @wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode():
            return function(*args, **kwargs)

    return within


S = TypeVar("S", bound="EagerScorer | CompiledScorer")


def copy_rows(scorer: S, rows: Sequence[int], capacity: int | None = None) -> S | None:
    """See :class:`~bild.decoding.scorer.Copying`; of either runtime.

    Args:
        scorer: what has read them.
        rows: places in its batch.
        capacity: rows the copy has room for; None: no more than it has.
    """
    if scorer.sources is not None:
        return None
    other = copy.copy(scorer)
    other._lengths = [scorer._lengths[b] for b in rows]
    other._cache = scorer._cache.copy(rows, other._lengths, capacity)
    return other


class EagerScorer:
    """One batch being read by an :class:`~bild.models.EagerModel`; see :class:`bild.decoding.Scorer`.

    Args:
        model: what reads it.
        sources: encoder input ids, one list a row; empty lists for a decoder-only model.
        encoded: what the encoder has made of each source ``[S, D]`` before; or of what another scorer reads too,
            which keeps and joins it.
    """

    def __init__(
        self, model: EagerModel, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | Encoded | None = None
    ) -> None:
        self.model, self.network = model, self._modules(model)
        self._lengths = [0] * len(sources)
        self._cache = RowCache(self._shapes(model), len(sources), COLUMNS)
        self.sources = self._look_up(sources, encoded) if model.is_encoder_decoder else None

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        check_last(tokens, last)
        return self._of_all(self._extend(tokens, last))

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        check_last(tokens, last)
        logits = widened(self._extend(tokens, last))
        whole, model = self._of_all(logits), self.model
        if model.short_list is None or not model.scores_all:
            return whole, Summary.of(whole)
        # Of the listed tokens: those that are not have no part in it.
        return whole, Summary.of(logits, model.short_list)

    def truncate(self, lengths: Sequence[int]) -> None:
        self._lengths = [min(own, length) for own, length in zip(self._lengths, lengths, strict=True)]

    @inferring
    def keep(self, rows: Sequence[int]) -> None:
        self._lengths = [self._lengths[b] for b in rows]
        self._cache.keep(rows, self._lengths)
        if self.sources is not None:
            self.sources.keep(rows)

    @inferring
    def join(self, other: EagerScorer) -> None:
        self._cache.join(other._cache, other._lengths)
        self._lengths += other._lengths
        if self.sources is not None and other.sources is not None:
            self.sources.join(other.sources)

    @inferring
    def copy(self, rows: Sequence[int]) -> Self | None:
        """See :class:`~bild.decoding.scorer.Copying`."""
        return copy_rows(self, rows)

    def _modules(self, model: EagerModel) -> PreTrainedModel:
        """What this scorer reads with."""
        return model.modules

    def _shapes(self, model: EagerModel) -> Sequence[Shape]:
        """Of what it stores."""
        return model.shapes

    def _look_up(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | Encoded | None) -> Sources:
        """The sources of the rows."""
        if isinstance(encoded, Encoded):
            return Sources(self.network, encoded, borrowed=True)
        return Sources(self.network, Encoded(self.network, sources, encoded, self.model.encoder_output))

    @inferring
    def _of_all(self, logits: Tensor) -> Tensor:
        """Logits of the tokens of the shared vocabulary, in its order."""
        model = self.model
        if model.short_list is not None:
            logits = spread(logits, model.short_list, model.head_size)
        return logits if logits.shape[-1] == model.vocab_size else logits[..., : model.vocab_size]

    @inferring
    def _extend(self, tokens: Sequence[Sequence[int]], last: int) -> Tensor:
        """Logits as the head gives them."""
        counts = [len(row) for row in tokens]
        self._cache.reserve(max(self._lengths) + max(counts))
        if self.model.batches or len(tokens) == 1:
            logits = self._pass(tokens, last, None)
        else:
            logits = self._one_by_one(tokens, last)
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        return logits

    def _one_by_one(self, tokens: Sequence[Sequence[int]], last: int) -> Tensor:
        """Rows that cannot share a pass, each in its own."""
        scored = {}
        for row, new in enumerate(tokens):
            if new:
                logits = self._pass([new], min(last, len(new)), row)[0]
                scored[row] = torch.cat([logits.new_zeros(last - len(logits), logits.shape[-1]), logits])
        nothing = torch.zeros_like(next(iter(scored.values())))
        return torch.stack([scored.get(row, nothing) for row in range(len(tokens))])

    def _pass(self, tokens: Sequence[Sequence[int]], last: int, row: int | None) -> Tensor:
        """Logits ``[B, last, V]`` after each row's last new tokens.

        Args:
            tokens: new ones of each row of the pass.
            last: positions to score.
            row: the only row of the pass; None: all.
        """
        lengths = self._lengths if row is None else self._lengths[row : row + 1]
        counts = [len(new) for new in tokens]
        begin, width = max(lengths), max(counts)
        tensors = self._cache.tensors if row is None else [each[row : row + 1] for each in self._cache.tensors]
        stands_together = begin == min(lengths) and width == min(counts) and not self.model.switches
        if stands_together:
            rows, mask, positions, now = self._together(tokens, row), None, None, Pass(wanted=last)
            past = cache_over(tensors, begin, None)
        else:
            numbers = to_device(torch.tensor(numbers_of(tokens, lengths, width)), self.model.device)
            new = placed(numbers, torch.arange(last, device=self.model.device))
            rows, positions = self._apart(new, row), new.positions
            mask = masks(self.network, positions, begin + width)
            now = Pass(positions, new.ends, new.wanted)
            past = cache_over(tensors, begin, positions)
            positions = positions if self.model.farthest is None else positions.clamp(max=self.model.farthest)
        needed = [b for b, count in enumerate(counts) if count] if row is None else [row]
        source: Source | None = None
        if self.sources is not None:
            past, source = self.sources.past(past, needed, row)
        return self._run(now, rows, past, mask, positions, source)

    def _run(
        self, now: Pass, rows: Tensor, past: Cache, mask: Any, positions: Tensor | None, source: Source | None
    ) -> Tensor:
        logits = run(self.network, now, rows, past, mask=mask, positions=positions, source=source)
        if isinstance(past, EncoderDecoderCache) and self.sources is not None:
            self.sources.adopt(past)
        return logits

    def _together(self, tokens: Sequence[Sequence[int]], row: int | None) -> Tensor:
        """What the network reads of rows of one length: ids ``[B, T]``, or hidden states ``[B, T, D]``."""
        return to_device(torch.tensor([pad(row, len(tokens[0])) for row in tokens]), self.model.device)

    def _apart(self, new: Placed, row: int | None) -> Tensor:
        """Likewise, of rows of several lengths."""
        return new.tokens
