"""How much a policy may lose on other texts, with a stated confidence.

A corpus score is no mean over texts. Each text is given the loss it stands for: the loss of the whole set, moved by
the score's derivative in what this text adds (the infinitesimal jackknife; Efron 1982). The values are paired, the
large model's text less the policy's; their mean is the loss, and their spread says how far it moves with other texts.

The bound is one on the loss of *other* texts, as many as these: both samples move, so the variance is twice that of
the mean. A budget is kept on several sets if it is kept on each, and all of them must say so: a policy that breaks it
on one is taken for one that keeps it no more often than that one set errs. Bounds that hold for any distribution
(Hoeffding, Bentkus, betting; Bates et al. 2021, Waudby-Smith & Ramdas 2024) are of no use here: a text may lose 100
points or gain 100, so they need thousands of texts even where not one of them differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Score = Callable[[np.ndarray], float]
"""The score of added-up statistics ``[size]``."""
STEP = 1e-3
"""Of the numerical derivative, relative."""
FEWEST_TO_TRIM = 20
OTHER_SAMPLE = 2.0
"""Variance of the difference of two means of equally many texts, in variances of one."""


@dataclass(frozen=True)
class Bound:
    """The loss of one policy on one set."""

    loss: float
    """Quality of the large model less that of the policy, over these texts."""
    upper: float
    """Upper end of the one-sided interval: what other texts, as many as these, lose at most with the confidence."""
    texts: int
    centre: float = 0.0
    """Loss that the interval is around: without the text that lost most and the one that gained most."""
    spread: float = 0.0
    """Standard deviation of a text's loss."""

    def to_dict(self) -> dict[str, Any]:
        """Loss, upper end and number of texts, as plain JSON values."""
        return {"loss": round(self.loss, 4), "upper": round(self.upper, 4), "texts": self.texts}


@dataclass(frozen=True)
class Level:
    """How sure a bound is.

    Args:
        confidence: that other texts lose no more, 0.5…1, both excluded.
    """

    confidence: float

    @property
    def errors(self) -> float:
        """Standard deviations of the mean above the centre at which a bound lies."""
        return NormalDist().inv_cdf(self.confidence) * math.sqrt(OTHER_SAMPLE)

    def bound(self, score: Score, large: np.ndarray, own: np.ndarray, changed: float) -> Bound:
        """The bound of a loss.

        Args:
            score: of summed statistics.
            large: statistics of the large model's texts ``[texts, size]``.
            own: of the policy's, text by text the same.
            changed: points that a changed text typically stands for, either way.
        """
        values, inner = losses_by_text(score, large, own), inner_losses(score, large, own)
        centre, spread, count = float(inner.mean()), spread_of(inner, len(values)), len(values)
        room = max(self.errors * spread / math.sqrt(count), self.unseen(count, changed))
        return Bound(float(values.mean()), centre + room, count, centre, spread)

    def unseen(self, texts: int, changed: float) -> float:
        """Points that changes may cost which these texts happen not to show.

        Of as many other texts, up to ``-ln(1 - confidence)`` may be changed where none of these is, each for better
        or worse.

        Args:
            texts: that were looked at.
            changed: points that a changed text typically stands for, either way.
        """
        return changed * math.sqrt(-math.log(1 - self.confidence)) / texts

    def fewest(self, room: float, changed: float) -> int | None:
        """Texts that must be looked at for :meth:`unseen` to be at most ``room``; None: no number is enough."""
        if changed <= 0:
            return 1
        return math.ceil(self.unseen(1, changed) / room) if room > 0 else None

    def needed(self, bound: Bound, budget: float, changed: float) -> int | None:
        """Texts that would settle that a budget is kept if the loss stays as it is; None: no number would."""
        room, fewest = budget - bound.centre, self.fewest(budget - bound.centre, changed)
        return None if fewest is None else max(fewest, math.ceil((self.errors * bound.spread / room) ** 2))


def losses_by_text(score: Score, large: np.ndarray, own: np.ndarray) -> np.ndarray:
    """What each text says of the loss, in points; the mean is the loss.

    Args:
        score: of summed statistics.
        large: statistics of the large model's texts ``[texts, size]``.
        own: of the policy's, text by text the same.
    """
    whole = score(large.sum(0)) - score(own.sum(0))
    moved = large @ derivative(score, large.sum(0)) - own @ derivative(score, own.sum(0))
    values: np.ndarray = whole + len(large) * (moved - moved.mean())
    return values


def derivative(score: Score, sums: np.ndarray) -> np.ndarray:
    """Of the score in each of the summed statistics, by differences: ``[size]``."""
    slopes = []
    for at, step in enumerate(np.maximum(STEP * np.abs(sums), STEP)):
        high, low = sums.copy(), sums.copy()
        high[at] += step
        # A count does not fall below 0.
        low[at] -= step if low[at] < 0 else min(step, low[at])
        slopes.append((score(high) - score(low)) / (high[at] - low[at]))
    return np.array(slopes)


def inner_losses(score: Score, large: np.ndarray, own: np.ndarray) -> np.ndarray:
    """As :func:`losses_by_text`, without the text that lost most and the one that gained most.

    A text that loops may be either, and would change what all others stand for: it makes the corpus longer. No single
    text is to have the last word.
    """
    values = losses_by_text(score, large, own)
    if len(values) < FEWEST_TO_TRIM:
        return values
    inner = np.argsort(values, kind="stable")[1:-1]
    return losses_by_text(score, large[inner], own[inner])


def spread_of(inner: np.ndarray, count: int) -> float:
    """Standard deviation of a text's loss, the texts left out counted as the next ones are (Yuen 1974)."""
    if count == 1:
        return math.inf
    left_out = [inner.max(), inner.min()][: count - len(inner)]
    return float(np.append(inner, left_out).std(ddof=1)) * count / len(inner)
