"""What a rule may look at of a row: the tokens so far, random numbers of its own, and what it has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

BLOCK = 32
"""Positions whose random numbers are drawn at once."""
LEVELS = 64
"""Levels of one stream of numbers, see :attr:`History.stream`."""
GOLDEN = 0x9E3779B97F4A7C15
"""An odd number that spreads small ones over 64 bits: seeds of levels lie far apart."""


class Use(IntEnum):
    """What a random number of a position decides."""

    TOKEN = 0
    """Which token a model draws."""
    ACCEPT = 1
    """Whether rejection sampling keeps the draft token."""
    REPLACE = 2
    """What it writes instead."""


@dataclass(slots=True, kw_only=True)
class History:
    """One text as the rules of decoding see it.

    Args:
        tokens: prompt, what is final and what is drafted.
        prompt_length: how many of them are the prompt.
        generator: source of the row's random numbers; None: torch's global one.
    """

    tokens: list[int]
    prompt_length: int
    generator: torch.Generator | None = None
    memory: dict[Any, Any] = field(default_factory=dict)
    """What rules have learnt from this row, by rule."""
    stream: int = 0
    """Which of its numbers :meth:`uniform` gives: another stream where a position is written again and what became of
    the first text depended on its numbers."""
    _uniforms: dict[int, list[list[float]]] = field(default_factory=dict)
    _generators: dict[int, torch.Generator | None] = field(default_factory=dict)

    def uniform(self, position: int, use: Use, level: int = 0) -> float:
        """The random number of a position, 0…1; the same however often and in whatever order it is asked for.

        Args:
            position: of the token it decides about, counted from the first prompt token.
            use: what it decides.
            level: 0 for the model that has the last word; each model below it that judges drafts has its own,
                because two tests at one position need two independent numbers.
        """
        place, level = position - self.prompt_length, level + self.stream * LEVELS
        numbers = self._uniforms.setdefault(level, [])
        while place >= len(numbers):
            block = torch.rand(BLOCK, len(Use), generator=self._generator(level), dtype=torch.float64)
            numbers += block.tolist()
        return numbers[place][use]

    def _generator(self, level: int) -> torch.Generator | None:
        if level not in self._generators:
            self._generators[level] = self.generator if level == 0 else self._seeded(level)
        return self._generators[level]

    def _seeded(self, level: int) -> torch.Generator:
        seed = seed_of(self.generator)
        return torch.Generator().manual_seed((seed ^ (level * GOLDEN)) & (2**63 - 1))


def seed_of(generator: torch.Generator | None) -> int:
    """What further streams of numbers follow from; of None torch's global generator gives one, another each time."""
    return int(torch.randint(2**62, ())) if generator is None else generator.initial_seed()


def uniforms(rows: Sequence[History], counts: Sequence[int], width: int, use: Use, level: int = 0) -> Tensor:
    """Random numbers ``[B, width]``, 0…1: of the last ``counts[b]`` positions; the last follows the tokens."""
    return torch.tensor(
        [
            [0.0] * (width - count)
            + [row.uniform(len(row.tokens) - back, use, level) for back in reversed(range(count))]
            for row, count in zip(rows, counts, strict=True)
        ],
        dtype=torch.float64,
    )
