"""Toy models for the loop: a fixed random distribution for every prefix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from bild.decoding import Scores

Tokens = Sequence[int]


class ToyModel:
    """A language model whose next-token logits are a hash of the last tokens of the prefix.

    Two toys of different seed but the same `blend` agree more often the larger it is: their logits
    share a common part, so drafts are sometimes kept and sometimes rolled back.
    """

    def __init__(self, seed: int, vocab_size: int = 7, *, blend: float = 0.7, scale: float = 2.5, memory: int = 4):
        self.seed, self.vocab_size, self.blend, self.scale, self.memory = seed, vocab_size, blend, scale, memory

    def logits(self, prefix: Tokens) -> torch.Tensor:
        recent = list(prefix)[-self.memory :]
        shared, own = (self._noise(seed, recent, len(prefix)) for seed in (0, self.seed + 1))
        return self.scale * (self.blend * shared + (1 - self.blend) * own)

    def _noise(self, seed: int, recent: Tokens, length: int) -> torch.Tensor:
        code = seed * 1_000_003 + length
        for token in recent:
            code = (code * 31 + token + 1) % 2**40
        return torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(code), dtype=torch.float64)


class ToyScorer:
    """A Scorer over toy models that really forgets: scores come from the tokens it was fed."""

    def __init__(self, model: ToyModel, batch_size: int = 1):
        self.model = model
        self.read: list[list[int]] = [[] for _ in range(batch_size)]
        self.passes = 0

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.read]

    def extend(self, tokens: Sequence[Tokens], last: int = 1) -> torch.Tensor:
        self.passes += 1
        logits = torch.full((len(tokens), last, self.model.vocab_size), torch.nan, dtype=torch.float64)
        for b, new in enumerate(tokens):
            start = len(self.read[b])
            self.read[b] += list(new)
            for back in range(min(last, len(new))):
                logits[b, -1 - back] = self.model.logits(self.read[b][: start + len(new) - back])
        return logits

    def summarize(self, tokens: Sequence[Tokens], last: int = 1) -> Scores:
        return Scores.of(self.extend(tokens, last))

    def join(self, other: ToyScorer) -> None:
        assert other.model is self.model
        self.read += other.read

    def truncate(self, lengths: Sequence[int]) -> None:
        for row, length in zip(self.read, lengths, strict=True):
            del row[length:]

    def keep(self, rows: Sequence[int]) -> None:
        self.read = [list(self.read[b]) for b in rows]


def never_twice(prefix: Tokens, logits: torch.Tensor) -> torch.Tensor:
    """A processor that forbids the last token."""
    logits = logits.clone()
    logits[prefix[-1]] = -math.inf
    return logits
