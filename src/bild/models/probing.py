"""Small trials of a network, so that what it cannot do is known before the first text and not in the middle of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from bild.models.cache import Shape
from bild.models.eager.sources import padded
from bild.models.loading.vocabulary import head_size
from bild.models.parts import decoder_config, encoder_config, encoder_of, states_in
from bild.models.passes import Source, run
from bild.models.seams import Pass
from bild.models.short_list import short_list_of, spread

SHARE = 0.1
"""Of the spread of logits: rounding in 16 bits costs less where different kernels compute them."""
NOISE = 4.0
"""How many times the difference that one rounding makes is still rounding."""
MOST = 0.5
"""Share of the spread of logits that no rounding excuses."""
WINDOWS = (
    *("sliding_window", "attention_chunk_size", "window_size", "attention_window", "local_attention"),
    "local_attention_window_len",
)
"""What configurations call the width of a window or chunk."""
FEWEST, BEYOND = 5, 3
"""Tokens of a trial, and how many more than a window or chunk has."""
LONGEST = 160
"""Tokens of the longest trial: wider windows would cost more than loading the network."""


def probe_tokens(network: PreTrainedModel, vocab_size: int, longest: int | None) -> tuple[list[int], list[int]]:
    """A source and tokens to try a network with, longer than its windows where those are narrow."""
    config = network.config
    tokens = _some(vocab_size, _length(decoder_config(network), longest))
    if not config.is_encoder_decoder:
        return [], tokens
    return _some(vocab_size, _length(encoder_config(network), longest) - 2), tokens


def _length(config: object, longest: int | None) -> int:
    wanted = [width + BEYOND for width in _widths(config) if width + BEYOND <= LONGEST]
    most = LONGEST if longest is None else longest
    return max(min([max([FEWEST, *wanted]), most]), FEWEST)


def _widths(config: object) -> list[int]:
    """Of the windows and chunks that the attention of some layer is bound to; LED names one a layer."""
    found = [getattr(config, name, None) for name in WINDOWS]
    each = [width for one in found for width in (one if isinstance(one, list | tuple) else [one])]
    return [width for width in each if isinstance(width, int)]


def _some(vocab_size: int, count: int) -> list[int]:
    return [vocab_size // 2 + i % max(1, vocab_size // 2) for i in range(count)]


class Reference:
    """A network that reads a text on transformers' own caches.

    Args:
        network: modules of our own.
        source: encoder input ids.
    """

    def __init__(self, network: PreTrainedModel, source: list[int]) -> None:
        self.network, self.own = network, DynamicCache()
        self.past = EncoderDecoderCache(self.own, DynamicCache()) if network.config.is_encoder_decoder else self.own
        self.source: Source | None = None
        if network.config.is_encoder_decoder:
            ids, mask = padded([source], network.device)
            self.source = Source(encoder_of(network)(input_ids=ids, attention_mask=mask), mask)

    @torch.inference_mode()
    def read(self, tokens: list[int], scored: int) -> Tensor:
        """Logits ``[scored, V]`` of the last of these tokens."""
        new = torch.tensor([tokens], device=self.network.device)
        logits = run(self.network, Pass(wanted=scored), new, self.past, source=self.source)[0]
        ids = short_list_of(self.network)
        return logits if ids is None else spread(logits, ids, head_size(self.network))

    @property
    def shapes(self) -> list[Shape]:
        """Of the keys, then the values, of every decoder layer."""
        return [Shape.of(tensor) for tensor in states_in(self.own)]

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return int(self.own.get_seq_length())


class Rounding:
    """What rounding makes of a trial, found out where it matters.

    Args:
        network: modules of our own.
        source: as for :class:`Reference`.
        tokens: that it read.
        whole: logits ``[T, V]`` of all of them, read in one piece.
    """

    def __init__(self, network: PreTrainedModel, source: list[int], tokens: list[int], whole: Tensor) -> None:
        self._trial = network, source, tokens, whole

    def explains(self, one: Tensor, other: Tensor) -> bool:
        """Whether two computations of the same logits need not differ by more."""
        apart = difference(one, other)
        return apart <= SHARE or apart <= tolerance(self._noise)

    @cached_property
    def _noise(self) -> float:
        network, source, tokens, whole = self._trial
        with nudged(network):
            return difference(whole, Reference(network, source).read(tokens, len(tokens)))


def are_numbers(logits: Tensor) -> bool:
    """Whether logits can be compared; −∞ forbids a token and is a number here."""
    return not bool((logits.isnan() | (logits == math.inf)).any())


def disagree(one: Tensor, other: Tensor, share: float = SHARE) -> bool:
    """Whether two computations of the same logits differ by more than ``share`` of their spread."""
    return not difference(one, other) <= share


def tolerance(noise: float) -> float:
    """Share of the spread of logits by which two right computations may differ.

    Args:
        noise: what they differ by for rounding alone, at this depth, width and dtype.
    """
    return min(MOST, max(SHARE, NOISE * noise))


@contextmanager
def nudged(network: PreTrainedModel) -> Iterator[None]:
    """While this lasts, tokens are embedded one rounding apart from what they are.

    What that makes of the scores is what a rounding costs at this depth, width and dtype. Numbers in 8 bits turn one
    into many: a row whose largest number moves is rounded anew as a whole.
    """

    def nudge(module: nn.Module, inputs: object, embedded: Tensor) -> Tensor:
        step = torch.finfo(embedded.dtype).eps
        up = torch.arange(embedded.shape[-1], device=embedded.device) % 2 * 2 - 1
        return embedded * (1 + step * up).to(embedded.dtype)

    handle = network.get_input_embeddings().register_forward_hook(nudge)
    try:
        yield
    finally:
        handle.remove()


def difference(one: Tensor, other: Tensor) -> float:
    """How far two computations of the same logits are apart, as a share of their spread; NaN where either has one."""
    one, other = one.float(), other.float()
    # Tokens that a network forbids itself (−∞) in both are alike.
    forbidden = (one == -math.inf) & (other == -math.inf)
    one, other = one.masked_fill(forbidden, 0), other.masked_fill(forbidden, 0)
    spread = (one - one.mean(-1, keepdim=True)).norm()
    return float(((one - other).norm() - 1e-3).clamp(min=0) / spread.clamp(min=1e-6))
