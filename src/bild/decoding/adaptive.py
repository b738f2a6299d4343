"""Rules that move their threshold while a text is written, so that nobody need tune it first.

In the spirit of AdaSD (Lu et al., arXiv 2512.11280): the small model's entropy decides when it hands over, the
Jensen–Shannon distance of both distributions what is rolled back. Our update rule: of every token the large model
has read it is known whether it would have written the same. The threshold is half way between the mean number of
the tokens they agreed on and the mean number of those they differed on (:class:`bild.decoding.rows.Boundary`),

    ``t = ½ (μ₊ + μ₋),  μ± = (n t₀ + Σ numbers) / (n + count)``,

where each mean begins with ``n`` tokens at the start value ``t₀``. Each row of a batch learns for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bild.decoding.acceptance import Reading, WithinDistance
from bild.decoding.hand_over import LowConfidence
from bild.decoding.rows import Boundary, Row

DEFAULT_PRIOR = 4.0


class Adaptive:
    """A rule that learns, in each row, from what the large model says."""

    threshold: float
    prior: float

    def boundary(self, row: Row) -> Boundary:
        """What this rule has learnt from a row."""
        return row.boundaries.setdefault(self, Boundary(self.threshold, self.prior))

    def learn(self, row: Row, numbers: Sequence[float], agreed: Sequence[bool]) -> None:
        """Take a round into account: each token's confidence or distance, and whether large would have written it."""
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

    def unsure(self, confidence: float, row: Row) -> bool:
        return confidence < self.boundary(row).middle


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
        return torch.tensor(limits, device=reading.logits.device)


def _check_prior(prior: float) -> None:
    if not prior > 0:
        raise ValueError(f"prior is {prior}; allowed is more than 0")
