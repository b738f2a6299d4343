"""How a model picks its next token: the most likely one, or a draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from bild.decoding.rows import Row, Use, uniforms


class Choice(Protocol):
    """Picks one token at every position."""

    def __call__(self, logits: Tensor, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
        """Token ids ``[B, T]`` for ``logits`` ``[B, T, V]``; only the last ``counts[b]`` of row ``b`` are used."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution it picks from, same shape as ``logits``."""


class Greedy:
    """The most likely token; the first of equals."""

    def __call__(self, logits: Tensor, rows: Sequence[Row], counts: Sequence[int]) -> Tensor:
        return logits.argmax(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """All on the likeliest token."""
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)


class Sampling:
    """A draw from the warped distribution, by inversion of its cumulative sum.

    Each position of a row has a random number of its own (:func:`bild.decoding.rows.uniforms`), the same
    for both models. So the same seed gives the same text on every device and in every batch, models that
    agree draw the same token, and exact match writes what the large model alone would have drawn.

    Args:
        warp: ``logits [N, V] -> logits [N, V]``: temperature, top-k, top-p, min-p; identity by default.
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
        return draw(self.probabilities(logits), uniforms(rows, counts, logits.shape[1], Use.TOKEN))


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token ``[B, T]`` at which the cumulative sum of ``weights`` ``[B, T, V]`` passes ``uniform`` ``[B, T]``."""
    cumulative = weights.double().cumsum(-1)
    # Scaled by the total, so weights need not sum to 1; "> u" never lands on a token of zero weight.
    threshold = uniform.to(weights.device).unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative > threshold).to(torch.uint8).argmax(-1)
