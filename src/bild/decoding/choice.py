"""How a model picks its next token: the most likely one, or a draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from bild.decoding.rows import Row


class Choice(Protocol):
    """Picks one token at every position."""

    def __call__(self, logits: Tensor, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
        """Token ids ``[B, T]`` for ``logits`` ``[B, T, V]``; only the last ``counts[b]`` of row ``b`` are used."""


class Greedy:
    """The most likely token; the first of equals."""

    def __call__(self, logits: Tensor, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
        return logits.argmax(-1)


class Sampling:
    """A draw from the warped distribution, by inversion of its cumulative sum.

    One uniform number a token comes from the row's own generator on the CPU, so the same seed
    gives the same text on every device and in every batch.

    Args:
        warp: ``logits [N, V] -> logits [N, V]``: temperature, top-k, top-p; identity by default.
    """

    def __init__(self, warp: Callable[[Tensor], Tensor] | None = None) -> None:
        self.warp = warp

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution drawn from, same shape as ``logits``."""
        flat = logits.flatten(0, -2).to(torch.promote_types(logits.dtype, torch.float32))
        if self.warp is not None:
            flat = self.warp(flat)
        return flat.softmax(-1).view(logits.shape)

    def __call__(self, logits: Tensor, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
        uniform = torch.zeros(logits.shape[:2], dtype=torch.float64)
        for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
            if count:
                uniform[b, -count:] = torch.rand(count, generator=row.request.generator, dtype=torch.float64)
        cumulative = self.probabilities(logits).double().cumsum(-1)
        # Scaled by the total, which rounding leaves a little off 1; "> u" never lands on a zero-probability token.
        threshold = uniform.to(logits.device).unsqueeze(-1) * cumulative[..., -1:]
        return (cumulative > threshold).to(torch.uint8).argmax(-1)
