"""Rules that move their threshold while a text is written, so that nobody need tune it first.

In the spirit of AdaSD (Lu et al., arXiv 2512.11280): the small model's entropy decides when it hands over, the
Jensen–Shannon distance of both distributions what is rolled back. Our update rule: of every token the large model
has read it is known whether it would have written the same. The threshold is half way between the mean number of
the tokens they agreed on and the mean number of those they differed on (:class:`Boundary`),

    ``t = ½ (μ₊ + μ₋),  μ± = (n t₀ + Σ numbers) / (n + count)``,

where each mean begins with ``n`` tokens at the start value ``t₀``. Each row of a batch learns for itself, and only
from tokens up to the first that was rolled back: a later position is drafted again with the same random numbers, and
what is learnt from it would tell the rule of draws that are still to come (lossless rules would no longer be so).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bild.decoding.acceptance import Reading, WithinDistance
from bild.decoding.draft import Draft
from bild.decoding.hand_over import LowConfidence
from bild.decoding.history import History
from bild.decoding.transfer import to_device
from bild.decoding.verdict import Verdict

DEFAULT_PRIOR = 4.0


@dataclass(slots=True)
class Boundary:
    """Running boundary between the numbers of agreed and of disagreed tokens.

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


class Adaptive:
    """A rule that learns, in each row, from what the large model says."""

    threshold: float
    prior: float

    def boundary(self, row: History) -> Boundary:
        """What this rule has learnt from a row."""
        known: Boundary = row.memory.setdefault(self, Boundary(self.threshold, self.prior))
        return known

    def take(self, row: History, numbers: Sequence[float], agreed: Sequence[bool]) -> None:
        """Take tokens into account: a number of each, and whether it is the large model's likeliest."""
        boundary = self.boundary(row)
        for number, same in zip(numbers, agreed, strict=False):
            # A forbidden token is infinitely far away and says nothing about where the boundary is.
            if math.isfinite(number):
                boundary.add(number, same)


@dataclass(frozen=True)
class AdaptiveConfidence(Adaptive, LowConfidence):
    """:class:`LowConfidence` whose threshold adapts.

    Args:
        threshold: to start from; see :class:`LowConfidence` for this and the other arguments.
        prior: tokens of either kind that the start counts for, above 0; higher adapts more slowly.

    Raises:
        ValueError: a value out of range.
    """

    prior: float = DEFAULT_PRIOR

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_prior(self.prior)

    def least(self, row: History) -> float:
        return self.boundary(row).middle

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        """Take a round into account."""
        agreed = verdict.agreed(draft)
        if draft.doubtful is not None and verdict.accepted == len(draft.tokens):
            agreed.append(draft.doubtful == verdict.likeliest[-1])
        self.take(row, draft.confidences, agreed)


@dataclass(frozen=True)
class AdaptiveDistance(Adaptive, WithinDistance):
    """:class:`WithinDistance` whose threshold adapts.

    Args:
        threshold: to start from; see :class:`WithinDistance` for this and the metric.
        prior: tokens of either kind that the start counts for, above 0; higher adapts more slowly.

    Raises:
        ValueError: a value out of range.
    """

    prior: float = DEFAULT_PRIOR

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_prior(self.prior)

    def limit(self, reading: Reading) -> Tensor:
        limits = [[self.boundary(row).middle] for row in reading.rows]
        return to_device(torch.tensor(limits), reading.logits.device)

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        """Take a round into account."""
        self.take(row, verdict.distances, verdict.agreed(draft))


def _check_prior(prior: float) -> None:
    if not prior > 0:
        raise ValueError(f"prior is {prior}; allowed is more than 0")
