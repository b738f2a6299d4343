"""When the small model hands over, and whether the token that made it do so is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from bild.decoding.history import History
from bild.decoding.scores import Scores

LooksAt = Literal["nothing", "probability", "logits"]
"""Nothing, the probability of the likeliest token, or more than that."""
ALWAYS_HAND_OVER = 2.0
"""Largest fallback threshold; a confidence never exceeds 1, so anything above 1 hands over every token."""


class HandOver(Protocol):
    """Decides after each token of the small model whether the large model takes the turn.

    Every rule looks at the small model's distribution alone, never at the token drawn from it, so none
    of them keeps a lossless acceptance rule from being lossless.
    """

    @property
    def window(self) -> int | None:
        """Longest draft this rule allows, or None for no limit of its own."""

    @property
    def keeps_doubtful(self) -> bool:
        """Whether the token that made the small model hand over stays in the draft."""

    @property
    def looks_at(self) -> LooksAt:
        """What :meth:`confidence` is measured on; a model can write several tokens in one call unless it is logits."""

    def confidence(self, scores: Scores) -> Tensor | None:
        """Confidence ``[B, K]`` in the next token, NaN where the scores are; None if this rule needs none."""

    def unsure(self, confidence: float, row: History) -> bool:
        """Whether a token of this confidence makes the small model hand over in this row; NaN must."""


def max_probability(logits: Tensor) -> Tensor:
    """``max_y p(y)`` of ``logits`` ``[…, V]``, 0…1 (section 3.3)."""
    return logits.softmax(-1).amax(-1)


def margin(logits: Tensor) -> Tensor:
    """``p(first) − p(second)`` of the two likeliest tokens, 0…1, of ``logits`` ``[…, V]``; 1 where V is 1."""
    if logits.shape[-1] == 1:
        return logits.new_ones(logits.shape[:-1])
    first, second = logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


def inverse_perplexity(logits: Tensor) -> Tensor:
    """``exp(−H(p))``, ``H`` the entropy in nats, 0…1: 0.5 is as uncertain as two equally likely tokens."""
    return (-entropy(logits)).exp()


def entropy(logits: Tensor) -> Tensor:
    """``H(p) = −Σ_y p(y) log p(y)`` of ``logits`` ``[…, V]``, nats, 0…log V; forbidden tokens add nothing."""
    logs = logits.log_softmax(-1)
    return -torch.where(logs == -math.inf, 0.0, logs.exp() * logs).sum(-1)


class Measure(NamedTuple):
    """A measure of confidence."""

    of: Callable[[Tensor], Tensor]
    default: float
    """Threshold where none is given."""


MEASURES = {
    "max_probability": Measure(max_probability, 0.5),
    "margin": Measure(margin, 0.3),
    "entropy": Measure(inverse_perplexity, 0.3),
}
MeasureName = Literal["max_probability", "margin", "entropy"]


@dataclass(frozen=True)
class LowConfidence:
    """BiLD's fallback policy: hand over when the confidence is below a threshold (section 3.3).

    The doubtful token is dropped; the large model writes that position.

    Args:
        threshold: 0…1; higher hands over more often: slower, nearer to large. Above 1 (up to 2) every
            token is handed over.
        measure: of confidence, each 0…1. ``"max_probability"``, the paper's: ``max_y p_S(y)``.
            ``"margin"``: between the two likeliest tokens. ``"entropy"``: ``exp(−H(p_S))``, so that
            0.5 hands over at the entropy of two equally likely tokens.
        window: longest draft, 1…; None: no limit of its own.
        keeps_doubtful: whether the doubtful token stays in the draft.

    Raises:
        ValueError: a value out of range or an unknown measure.
    """

    threshold: float
    measure: MeasureName = "max_probability"
    window: int | None = None
    keeps_doubtful: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= ALWAYS_HAND_OVER:
            raise ValueError(
                f"fallback_threshold is {self.threshold}; allowed is 0 to 1, or up to "
                f"{ALWAYS_HAND_OVER:g} to hand over every token"
            )
        if self.measure not in MEASURES:
            raise ValueError(f"measure is {self.measure!r}; allowed are {', '.join(MEASURES)}")
        if not isinstance(self.keeps_doubtful, bool):
            raise ValueError(f"keeps_doubtful is {self.keeps_doubtful!r}; allowed are True and False")
        _check_window(self.window)

    @property
    def looks_at(self) -> LooksAt:
        return "probability" if self.measure == "max_probability" else "logits"

    def confidence(self, scores: Scores) -> Tensor:
        if self.measure == "max_probability":
            return scores.summary.probability
        return MEASURES[self.measure].of(scores.logits)

    def least(self, row: History) -> float:
        """The confidence below which this row's next token is doubted."""
        return self.threshold

    def unsure(self, confidence: float, row: History) -> bool:
        # Said this way round, scores that are not numbers are doubted.
        return not confidence >= self.least(row)


@dataclass(frozen=True)
class FixedWindow:
    """Speculative decoding's rule: draft a fixed number of tokens and keep them all.

    Args:
        window: tokens a draft, at least 1; None: hand over only when the policy's ``max_draft_tokens``
            are written or the text ends.

    Raises:
        ValueError: window below 1.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        _check_window(self.window)

    @property
    def keeps_doubtful(self) -> bool:
        return False

    @property
    def looks_at(self) -> LooksAt:
        return "nothing"

    def confidence(self, scores: Scores) -> None:
        return None

    def unsure(self, confidence: float, row: History) -> bool:
        return False


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; allowed is 1 or more")
