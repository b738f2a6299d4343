"""One row of a batch: what was asked for, and the tokens written so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import torch
from torch import Tensor

FinishReason = Literal["eos", "stop", "length"]
BLOCK = 32
"""Positions whose random numbers are drawn at once."""


class Use(IntEnum):
    """What a random number of a position decides."""

    TOKEN = 0
    """Which token a model draws."""
    ACCEPT = 1
    """Whether rejection sampling keeps the draft token."""
    REPLACE = 2
    """What it writes instead."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued.

    Args:
        prompt: token ids both models start from (decoder start and forced tokens of an
            encoder-decoder, the prompt of a decoder-only model); at least one.
        max_new_tokens: longest continuation, at least 1.
        eos_token_ids: a token of these ends the text.
        stop: given all tokens of the row, says whether the text ends there (stop strings).
        process: ``(prefix tokens, logits [V]) -> logits [V]``: changes the scores of the token
            after a prefix, for both models (forbidden, forced and penalised tokens).
        generator: source of random numbers when sampling, one a row, so that a row's text does
            not depend on its neighbours; None: torch's global one.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    eos_token_ids: Collection[int] = ()
    stop: Callable[[Sequence[int]], bool] | None = None
    process: Callable[[Sequence[int], Tensor], Tensor] | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a row needs at least one prompt token, got none")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, must be at least 1")


@dataclass(slots=True)
class Row:
    """``tokens[:committed]`` is final, ``tokens[committed:]`` is the draft."""

    index: int
    request: Request
    tokens: list[int] = field(init=False)
    committed: int = field(init=False)
    boundaries: dict[object, Boundary] = field(default_factory=dict)
    """What adaptive rules have learnt from this row, by rule."""
    _uniforms: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        self.committed = len(self.tokens)

    def ended(self) -> FinishReason | None:
        """Whether the text ends with the last token written, and why."""
        request = self.request
        if self.tokens[-1] in request.eos_token_ids:
            return "eos"
        if request.stop is not None and request.stop(self.tokens):
            return "stop"
        if len(self.tokens) - len(request.prompt) >= request.max_new_tokens:
            return "length"
        return None

    def uniform(self, position: int, use: Use) -> float:
        """The random number of a position, 0…1; the same however often and in whatever order it is asked for."""
        place = position - len(self.request.prompt)
        while place >= len(self._uniforms):
            block = torch.rand(BLOCK, len(Use), generator=self.request.generator, dtype=torch.float64)
            self._uniforms += block.tolist()
        return self._uniforms[place][use]


@dataclass(slots=True)
class Boundary:
    """Where the numbers of tokens both models agree on part from those of tokens they differ on.

    Args:
        start: the boundary before anything is known.
        prior: how many tokens of either kind the start counts for, above 0.
    """

    start: float
    prior: float
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    counts: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, number: float, agreed: bool) -> None:
        """Take one more token's number into account."""
        self.sums[agreed] += number
        self.counts[agreed] += 1

    @property
    def middle(self) -> float:
        """Half way between the two running means, each begun with ``prior`` tokens at ``start``."""
        means = [
            (self.prior * self.start + total) / (self.prior + count)
            for total, count in zip(self.sums, self.counts, strict=True)
        ]
        return sum(means) / 2


def uniforms(rows: Sequence[Row], counts: Sequence[int], width: int, use: Use) -> Tensor:
    """Random numbers ``[B, width]``, 0…1: of the last ``counts[b]`` positions; the last follows the tokens."""
    return torch.tensor(
        [
            [0.0] * (width - count) + [row.uniform(len(row.tokens) - back, use) for back in reversed(range(count))]
            for row, count in zip(rows, counts, strict=True)
        ],
        dtype=torch.float64,
    )


def processes(rows: Sequence[Row]) -> bool:
    """Whether any row changes its scores."""
    return any(row.request.process is not None for row in rows)


def process(rows: Sequence[Row], logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Apply each row's processor to the last ``counts[b]`` positions of ``logits`` ``[B, T, V]``.

    Returns at least float32: probabilities need it, and a CPU finds the largest of 16-bit numbers
    more slowly. The last position scores what follows ``row.tokens``, the one before what follows all but
    the last of them, and so on: processors depend on the prefix.
    """
    if logits.dtype.itemsize < torch.float32.itemsize:
        logits = logits.float()
    if not processes(rows):
        return logits
    logits = logits.clone()
    for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if row.request.process is not None:
            for back in range(count):
                prefix = row.tokens[: len(row.tokens) - back]
                logits[b, -1 - back] = row.request.process(prefix, logits[b, -1 - back])
    return logits
