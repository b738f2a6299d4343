"""Which policies are worth running: quality by looking up, seconds by the cost model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bild.data.examples import Example
from bild.data.quality import QualityMetric, misjudges, quality_metric
from bild.decoding import LowConfidence, Policy, WithinDistance
from bild.errors import InputError
from bild.tuning.costs import CostModel
from bild.tuning.simulation import Outcome, Simulator

FALLBACK = (0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)
ROLLBACK = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
VERIFY_END: tuple[bool | float, ...] = (False, 0.6, 0.8, True)
WINDOWS = (10, 30)
FIRST_TEXTS = 250
"""Texts of each set on which the whole grid is tried."""
SLACK = 1.5
"""Points beyond the budget that such a small sample may be wrong by."""
SECOND_ROUND = 64
"""Policies that go on to all texts."""
REFINEMENTS = 2


@dataclass(frozen=True)
class Point:
    """A policy on the dev sets, as far as looking up tells."""

    policy: Policy
    quality: Mapping[str, float]
    """By set."""
    loss: Mapping[str, float]
    """Quality of the large model less this, by set."""
    seconds: float
    """Predicted, of all texts."""
    speedup: float
    """Predicted, against the large model alone."""

    @property
    def worst_loss(self) -> float:
        """The largest loss of any set."""
        return max(self.loss.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "policy": self.policy.to_dict(),
            "quality": dict(self.quality),
            "loss": dict(self.loss),
            "predicted_speedup": self.speedup,
        }


@dataclass
class Texts:
    """The dev texts and how they are scored.

    Args:
        sets: examples by set, with references.
        metric: ``"bleu"``, ``"rougeL"``, …: a name of :mod:`bild.data.quality`.
        detokenise: from token ids to text.
    """

    sets: Mapping[str, Sequence[Example]]
    metric: str
    detokenise: Callable[[Sequence[int]], str]

    def __post_init__(self) -> None:
        self.scorer: QualityMetric = quality_metric(self.metric)
        wrong = misjudges(
            self.scorer, (text for members in self.sets.values() for e in members for text in e.references)
        )
        if wrong is not None:
            raise InputError(wrong)
        self.examples = [(name, example) for name, members in self.sets.items() for example in members]
        self._known: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

    def first(self, count: int) -> list[int]:
        """Indices of the first examples of each set."""
        names = [name for name, _ in self.examples]
        return [index for index, name in enumerate(names) if index - names.index(name) < count]

    def quality(self, tokens: Mapping[int, tuple[int, ...]]) -> dict[str, float]:
        """The score of each set, over these texts (by index)."""
        scores = {}
        for name in self.sets:
            rows = [self._statistics(index, ids) for index, ids in tokens.items() if self.examples[index][0] == name]
            score = self.scorer.score(np.sum(rows, axis=0).tolist())
            assert score is not None
            scores[name] = score
        return scores

    def _statistics(self, index: int, tokens: tuple[int, ...]) -> np.ndarray:
        """What one text adds; policies often write the same."""
        if (index, tokens) not in self._known:
            text, references = self.detokenise(tokens), self.examples[index][1].references
            self._known[index, tokens] = np.asarray(self.scorer.statistics(text, references), dtype=np.float64)
        return self._known[index, tokens]


class Search:
    """Finds the fastest policies of a quality budget.

    Args:
        simulator: of all texts.
        texts: the same, with references.
        large: what the large model alone makes of each text.
        costs: of this machine.
        budget: quality points that may be lost on each set.
        progress: told what is being done.
    """

    def __init__(
        self,
        simulator: Simulator,
        texts: Texts,
        large: Sequence[Outcome],
        costs: CostModel,
        budget: float,
        progress: Callable[[str], None],
    ) -> None:
        self.simulator, self.texts, self.costs, self.budget = simulator, texts, costs, budget
        self.large, self.progress = large, progress

    def run(self, grid: Sequence[Policy]) -> list[Point]:
        """All policies that were looked up on every text, fastest first."""
        first = self.texts.first(FIRST_TEXTS)
        self.progress(f"{len(grid)} policies on {len(first)} texts")
        points = self.points(grid, first)
        limit = self.budget + SLACK
        near = [point for point in points if point.worst_loss <= limit]
        far = sorted((point for point in points if point.worst_loss > limit), key=lambda point: point.worst_loss)
        chosen, everything = [*near, *far[:SECOND_ROUND]], range(len(self.texts.examples))
        found: dict[Policy, Point] = {}
        # The first texts may flatter the fastest; slower ones follow until some keep the budget, at last the nearest.
        while chosen and not self.within_budget(found.values()):
            batch, chosen = [point.policy for point in chosen[:SECOND_ROUND]], chosen[SECOND_ROUND:]
            self.progress(f"{len(batch)} policies on {len(everything)} texts")
            found |= {point.policy: point for point in self.points(batch, everything)}
        for _ in range(REFINEMENTS):
            best = self.within_budget(found.values())[:3]
            fresh = [policy for point in best for policy in neighbours(point.policy) if policy not in found]
            found |= {point.policy: point for point in self.points(list(dict.fromkeys(fresh)), everything)}
        return sorted(found.values(), key=lambda point: point.seconds)

    def points(self, policies: Sequence[Policy], texts: Sequence[int]) -> list[Point]:
        """These policies on these texts, fastest first."""
        self.simulator.run(policies, texts)
        reference = self.texts.quality({index: self.large[index].tokens for index in texts})
        large_s = self.costs.predict([self.large[index] for index in texts])
        points = []
        for policy in policies:
            of_policy = self.simulator.outcomes[policy]
            outcomes = {index: of_policy[index] for index in texts}
            quality = self.texts.quality({index: outcome.tokens for index, outcome in outcomes.items()})
            loss = {name: reference[name] - value for name, value in quality.items()}
            seconds = self.costs.predict(list(outcomes.values()))
            points.append(Point(policy, quality, loss, seconds, large_s / seconds))
        return sorted(points, key=lambda point: point.seconds)

    def within_budget(self, points: Iterable[Point]) -> list[Point]:
        """Those that lose at most the budget on every set, fastest first."""
        kept = [point for point in points if point.worst_loss <= self.budget]
        return sorted(kept, key=lambda point: point.seconds)


def default_grid(measure: str = "max_probability", metric: str = "nll") -> list[Policy]:
    """The policies that are tried: fallback and rollback thresholds, which ends are read, longest draft."""
    return [
        Policy.preset(
            "bild",
            fallback_threshold=fallback,
            rollback_threshold=rollback,
            verify_end=end,
            max_draft_tokens=window,
            measure=measure,
            metric=metric,
        )
        for fallback, rollback, end, window in itertools.product(FALLBACK, ROLLBACK, VERIFY_END, WINDOWS)
    ]


def neighbours(policy: Policy) -> list[Policy]:
    """Policies a small step away in one threshold each."""
    assert isinstance(policy.hand_over, LowConfidence) and isinstance(policy.acceptance, WithinDistance)
    fallback, rollback = policy.hand_over.threshold, policy.acceptance.threshold
    steps: list[dict[str, Any]] = [
        *({"fallback_threshold": round(fallback + step, 3)} for step in (-0.05, -0.025, 0.025, 0.05)),
        *({"rollback_threshold": round(rollback * factor, 2)} for factor in (0.75, 0.88, 1.12, 1.3)),
        *({"verify_end": end} for end in (0.5, 0.7, 0.9)),
        *({"max_draft_tokens": window} for window in (5, 7, 15, 30)),
    ]
    return [policy.named("bild", **step) for step in steps if 0 <= step.get("fallback_threshold", 0) <= 1]


def distinct(points: Iterable[Point]) -> list[Point]:
    """Without policies that do on these texts what an earlier one does."""
    kept: dict[tuple[float, ...], Point] = {}
    for point in points:
        kept.setdefault((point.seconds, *point.quality.values()), point)
    return list(kept.values())


def pareto(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats in speed and worst loss, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.seconds, each.worst_loss)):
        if not front or point.worst_loss < front[-1].worst_loss:
            front.append(point)
    return front
