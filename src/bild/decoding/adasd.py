"""AdaSD as its paper has it (Lu et al., arXiv 2512.11280, both versions): two thresholds that nobody tunes.

The small model hands over after a token whose entropy is above the mean entropy of the drafted tokens that were
rejected so far. The large model keeps a token by the Jensen-Shannon distance ``d`` of both distributions alone, whether
it would write that token or not:

- version 1: while ``d < T``, ``T`` half way between the mean distance of accepted and of rejected tokens;
- version 2: while ``P(accepted | d) ≥ ½``, by Bayes' rule from the shares of accepted and rejected tokens and
  densities estimated of their distances, from which exact 0 and 1 are left out.

What the paper leaves open is ours: no hand-over before the first rejection; the exact rule until both groups have four
tokens; the token that stops stays in the draft; only the first rejected token of a draft counts as rejected, as later
ones were never judged; Gaussian kernels of Silverman's width, at least 0.02, mirrored at 0 and 1; and ``decay``, since
a threshold that lets everything pass sees no rejected token any more. Our own rule of that kind, which learns from
agreement, is :mod:`~bild.decoding.adaptive`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bild.decoding.acceptance import Judgement, Reading
from bild.decoding.draft import Draft
from bild.decoding.hand_over import MEASURES, LooksAt
from bild.decoding.history import History
from bild.decoding.scores import Scores
from bild.decoding.verdict import Verdict

FIRST = 4
"""Tokens that both groups must have before the exact rule gives way."""
NARROWEST = 0.02
"""Least width of a kernel."""


@dataclass(slots=True)
class Sample:
    """Numbers seen so far, of which older ones may count for less."""

    decay: float = 1.0
    values: list[float] = field(default_factory=list)

    @property
    def weights(self) -> list[float]:
        """What each counts for; the newest 1."""
        return [self.decay**age for age in reversed(range(len(self.values)))]

    @property
    def mean(self) -> float:
        """Of the numbers, by their weights."""
        weights = self.weights
        return sum(w * value for w, value in zip(weights, self.values, strict=True)) / sum(weights)

    def density(self, at: Tensor) -> Tensor:
        """Estimated at some points; exact 0 and 1 are left out."""
        inside = [(v, w) for v, w in zip(self.values, self.weights, strict=True) if 0 < v < 1]
        if not inside:
            return torch.zeros_like(at)
        values, weights = torch.tensor(inside, dtype=at.dtype, device=at.device).unbind(1)
        spread = statistics.pstdev([value for value, _ in inside])
        width = max(NARROWEST, 1.06 * spread * len(inside) ** -0.2)
        mirrored = torch.cat([values, -values, 2 - values])
        kernels = torch.exp(-(((at[..., None] - mirrored) / width) ** 2) / 2)
        density: Tensor = (weights.repeat(3) * kernels).sum(-1) / (weights.sum() * width * math.sqrt(2 * math.pi))
        return density


@dataclass(frozen=True)
class EntropyOfRejected:
    """Hand over after a token whose entropy is above the mean entropy of rejected tokens, which stays in the draft.

    Args:
        decay: what a rejected token counts for when one more has been seen, above 0, up to 1: never less.

    Raises:
        ValueError: a value out of range.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        _check_decay(self.decay)

    @property
    def window(self) -> int | None:
        return None

    @property
    def keeps_doubtful(self) -> bool:
        return True

    @property
    def looks_at(self) -> LooksAt:
        return "logits"

    def confidence(self, scores: Scores) -> Tensor:
        """``exp(-H)``, 0…1: as other rules, higher is surer."""
        return MEASURES["entropy"].of(scores.logits)

    def rejected(self, row: History) -> Sample:
        """Entropies, in nats, of the tokens of a row that were rejected."""
        known: Sample = row.memory.setdefault(self, Sample(self.decay))
        return known

    def unsure(self, confidence: float, row: History) -> bool:
        rejected = self.rejected(row)
        # Scores that are not numbers are doubted, and a vocabulary of one token has no entropy.
        return confidence != confidence or (bool(rejected.values) and _nats(confidence) > rejected.mean)

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        """Take a round into account."""
        if verdict.accepted < len(draft.confidences) and verdict.accepted < len(draft.tokens):
            self.rejected(row).values.append(_nats(draft.confidences[verdict.accepted]))


@dataclass(frozen=True)
class DistanceOfAccepted:
    """Keep a token by how far both distributions are apart there, judged by the tokens before. Not lossless.

    Args:
        version: of the paper, 1 or 2.
        decay: what a token counts for when one more of its group has been seen, above 0, up to 1: never less.

    Raises:
        ValueError: a value out of range.
    """

    version: int = 2
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"version is {self.version}; allowed are 1 and 2")
        _check_decay(self.decay)

    @property
    def lossless(self) -> bool:
        return False

    @property
    def needs_draft_logits(self) -> bool:
        return True

    def groups(self, row: History) -> tuple[Sample, Sample]:
        """Distances of the rejected and of the accepted tokens of a row."""
        known: tuple[Sample, Sample] = row.memory.setdefault(self, (Sample(self.decay), Sample(self.decay)))
        return known

    def judge(self, reading: Reading) -> Judgement:
        own, distance = reading.own(), reading.distance("js")
        keep = own == reading.drafted
        for b, row in enumerate(reading.rows):
            rejected, accepted = self.groups(row)
            if min(len(rejected.values), len(accepted.values)) >= FIRST:
                keep[b] = self._near(distance[b], rejected, accepted)
        return Judgement(keep, own, distance)

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        """Take a round into account: its accepted tokens and the first rejected one."""
        rejected, accepted = self.groups(row)
        accepted.values += _numbers(verdict.distances[: verdict.accepted])
        rejected.values += _numbers(verdict.distances[verdict.accepted : verdict.accepted + 1])

    def _near(self, distance: Tensor, rejected: Sample, accepted: Sample) -> Tensor:
        if self.version == 1:
            return distance < (accepted.mean + rejected.mean) / 2
        chances = [group.density(distance) * sum(group.weights) for group in (accepted, rejected)]
        # Where neither has ever been, nothing speaks for keeping.
        return (chances[0] >= chances[1]) & (chances[0] > 0)


def _numbers(distances: Sequence[float]) -> list[float]:
    return [distance for distance in distances if math.isfinite(distance)]


def _nats(confidence: float) -> float:
    return -math.log(confidence) if confidence > 0 else math.inf


def _check_decay(decay: float) -> None:
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}; allowed is above 0, up to 1")
