"""When the small model hands over, and whether the token that made it do so is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

ALWAYS_HAND_OVER = 2.0
"""Largest fallback threshold; a probability never exceeds 1, so anything above 1 hands over every token."""


class HandOver(Protocol):
    """Decides after each token of the small model whether the large model takes the turn."""

    @property
    def window(self) -> int | None:
        """Longest draft this rule allows, or None for no limit of its own."""

    @property
    def keeps_doubtful(self) -> bool:
        """Whether the token that made the small model hand over stays in the draft."""

    def confidence(self, logits: Tensor) -> Tensor | None:
        """Confidence ``[B]`` in the next token from ``logits`` ``[B, V]``, or None if this rule needs none."""

    def unsure(self, confidence: float) -> bool:
        """Whether a token of this confidence makes the small model hand over."""


def max_probability(logits: Tensor) -> Tensor:
    """``max_y p(y)`` of ``logits`` ``[B, V]``, 0…1 (section 3.3)."""
    return logits.softmax(-1).amax(-1)


@dataclass(frozen=True)
class LowConfidence:
    """BiLD's fallback policy: hand over when ``max_y p_S(y) < threshold`` (section 3.3).

    The doubtful token is dropped; the large model writes that position.

    Args:
        threshold: probability, 0…1; higher hands over more often: slower, nearer to large.
            Above 1 (up to 2) every token is handed over.

    Raises:
        ValueError: threshold out of range.
    """

    threshold: float
    window: int | None = None
    keeps_doubtful: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= ALWAYS_HAND_OVER:
            raise ValueError(
                f"fallback_threshold is {self.threshold}; allowed is 0 to 1, or up to "
                f"{ALWAYS_HAND_OVER:g} to hand over every token"
            )
        _check_window(self.window)

    def confidence(self, logits: Tensor) -> Tensor:
        return max_probability(logits)

    def unsure(self, confidence: float) -> bool:
        return confidence < self.threshold


@dataclass(frozen=True)
class FixedWindow:
    """Speculative decoding's rule: always draft ``window`` tokens and keep them all.

    Args:
        window: tokens a draft, at least 1.

    Raises:
        ValueError: window below 1.
    """

    window: int
    keeps_doubtful: bool = True

    def __post_init__(self) -> None:
        _check_window(self.window)

    def confidence(self, logits: Tensor) -> None:
        return None

    def unsure(self, confidence: float) -> bool:
        return False


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; allowed is 1 or more")
