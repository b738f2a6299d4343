"""How a model picks its next token: the most likely one, or a draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bild.decoding.history import History, Use, uniforms
from bild.decoding.scores import Scores, widened
from bild.decoding.transfer import to_device


class Choice(Protocol):
    """Picks one token at every position. Equal choices may pick for rows of one batch together."""

    @property
    def draws(self) -> bool:
        """Whether chance decides; if not, it is always the likeliest token."""

    def __call__(self, scores: Scores, rows: Sequence[History], counts: Sequence[int], level: int = 0) -> Tensor:
        """Token ids ``[B, T]``; only the last ``counts[b]`` of row ``b`` are used.

        Args:
            scores: of every position ``[B, T, V]``.
            rows: of the batch.
            counts: positions of each row that are asked for.
            level: whose random numbers decide, see :meth:`~bild.decoding.history.History.uniform`.
        """

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution it picks from, same shape as ``logits``."""

    def warped(self, logits: Tensor) -> Tensor:
        """The scores ``[N, V]`` whose softmax is that distribution, where chance decides."""


@dataclass(frozen=True)
class Greedy:
    """The most likely token; the first of equals."""

    @property
    def draws(self) -> bool:
        return False

    def __call__(self, scores: Scores, rows: Sequence[History], counts: Sequence[int], level: int = 0) -> Tensor:
        return scores.summary.likeliest

    def probabilities(self, logits: Tensor) -> Tensor:
        """All on the likeliest token."""
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)

    def warped(self, logits: Tensor) -> Tensor:
        return logits


@dataclass(frozen=True)
class Sampling:
    """A draw from the warped distribution, by inversion of its cumulative sum.

    Each position of a row has a random number of its own (:func:`bild.decoding.history.uniforms`), the same
    for both models. So the same seed gives the same text on every device and in every batch, models that
    agree draw the same token, and exact match writes what the large model alone would have drawn.

    Args:
        warp: ``logits [N, V] -> logits [N, V]``: temperature, top-k, top-p, min-p; identity by default.
    """

    warp: Callable[[Tensor], Tensor] | None = None

    @property
    def draws(self) -> bool:
        return True

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution drawn from, same shape as ``logits``."""
        return self.warped(logits.flatten(0, -2)).softmax(-1).view(logits.shape)

    def warped(self, logits: Tensor) -> Tensor:
        """The scores ``[N, V]`` after temperature, top-k and what else there is, in 32 bits at least."""
        precise = widened(logits)
        return precise if self.warp is None else self.warp(precise)

    def __call__(self, scores: Scores, rows: Sequence[History], counts: Sequence[int], level: int = 0) -> Tensor:
        width = scores.logits.shape[1]
        return draw(self.probabilities(scores.logits), uniforms(rows, counts, width, Use.TOKEN, level))


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The token ``[B, T]`` at which the cumulative sum of ``weights`` ``[B, T, V]`` passes ``uniform`` ``[B, T]``."""
    # Apple's GPUs have no float64.
    precise = torch.float32 if weights.device.type == "mps" else torch.float64
    cumulative = weights.to(precise).cumsum(-1)
    # Scaled by the total, so weights need not sum to 1; "> u" never lands on a token of zero weight.
    threshold = to_device(uniform.to(precise), weights.device).unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative > threshold).to(torch.uint8).argmax(-1)
