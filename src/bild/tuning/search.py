"""Which policies are worth judging: quality by looking up, seconds by the cost model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bild.data.examples import Example
from bild.data.quality import QualityMetric, misjudges
from bild.decoding import Policy
from bild.errors import InputError
from bild.tuning.agreement import Agreement
from bild.tuning.costs import CostModel
from bild.tuning.grid import neighbours
from bild.tuning.simulation import Outcome, Simulator

FIRST_TEXTS = 100
"""Texts of each set on which the whole grid is tried."""
SECOND_ROUND = 96
"""Policies that go on to all texts."""
REFINEMENTS = 2
REFINED = 3
"""Policies whose neighbours are tried, each time."""
AT_ONCE = 64
"""Texts looked up between two looks at the clock."""


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
    changed: float = 0.0
    """Share of the texts that differ from the large model's own, 0…1."""

    @property
    def worst_loss(self) -> float:
        """The largest loss of any set."""
        return max(self.loss.values())

    def to_dict(self) -> dict[str, Any]:
        """The policy, and its figures by name, as plain JSON values."""
        return {
            "policy": self.policy.to_dict(),
            "quality": dict(self.quality),
            "loss": dict(self.loss),
            "predicted_speedup": self.speedup,
            "changed": self.changed,
        }


@dataclass
class Texts:
    """The dev texts and how they are scored.

    Args:
        sets: examples by set, with references.
        metric: scores summed statistics of texts.
        detokenise: from token ids to text.
    """

    sets: Mapping[str, Sequence[Example]]
    metric: QualityMetric
    detokenise: Callable[[Sequence[int]], str]

    def __post_init__(self) -> None:
        wrong = misjudges(
            self.metric, (text for members in self.sets.values() for e in members for text in e.references)
        )
        if wrong is not None:
            raise InputError(wrong)
        self.examples = [(name, example) for name, members in self.sets.items() for example in members]
        self._known: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

    def first(self, count: int, among: Sequence[int] | None = None) -> list[int]:
        """Indices of the first ``count`` examples of each set, among these indices (None: all)."""
        of_set = self.by_set(range(len(self.examples)) if among is None else among)
        return sorted(index for indices in of_set.values() for index in indices[:count])

    def by_set(self, texts: Iterable[int]) -> dict[str, list[int]]:
        """These indices, by the set they are of; sets without any are left out."""
        of_set: dict[str, list[int]] = {name: [] for name in self.sets}
        for index in texts:
            of_set[self.examples[index][0]].append(index)
        return {name: indices for name, indices in of_set.items() if indices}

    def quality(self, tokens: Mapping[int, tuple[int, ...]]) -> dict[str, float]:
        """The score of each set, over these texts (by index)."""
        return {name: self.score(rows) for name, rows in self.statistics(tokens).items()}

    def statistics(self, tokens: Mapping[int, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """What each of these texts (by index) adds to the score of its set: ``[texts, size]``."""
        of_set = self.by_set(tokens)
        return {name: np.array([self.of_text(i, tokens[i]) for i in indices]) for name, indices in of_set.items()}

    def score(self, rows: np.ndarray) -> float:
        """The score of texts of these statistics ``[texts, size]``."""
        return self.score_of(rows.sum(0))

    def score_of(self, sums: np.ndarray) -> float:
        """The score of added-up statistics; 0 where there is nothing to score."""
        score = self.metric.score(sums.tolist())
        return 0.0 if score is None else score

    def of_text(self, index: int, tokens: tuple[int, ...]) -> np.ndarray:
        """What one text adds; policies often write the same."""
        if (index, tokens) not in self._known:
            self._known[index, tokens] = np.asarray(self.statistics_of(self.metric, index, tokens), dtype=np.float64)
        return self._known[index, tokens]

    def statistics_of(self, metric: QualityMetric, index: int, tokens: tuple[int, ...]) -> Sequence[float]:
        """What one text adds to a metric."""
        if isinstance(metric, Agreement):
            return metric.of_tokens(index, tokens)
        return metric.statistics(self.detokenise(tokens), self.examples[index][1].references)


class Search:
    """Finds the policies that nothing beats in both speed and loss.

    Args:
        simulator: of all texts.
        texts: the same, with references.
        large: what the large model alone makes of each text.
        costs: of this machine.
        budget: quality points that may be lost on each set.
        progress: told what is being done.
        surprise: −log of the probability that the large model gives to a text, by its index.
    """

    def __init__(
        self,
        simulator: Simulator,
        texts: Texts,
        large: Sequence[Outcome],
        costs: CostModel,
        budget: float,
        progress: Callable[[str], None],
        surprise: Callable[[int, tuple[int, ...]], float] = lambda index, tokens: 0.0,
    ) -> None:
        self.simulator, self.texts, self.costs, self.budget = simulator, texts, costs, budget
        self.large, self.progress, self.surprise = large, progress, surprise

    def run(
        self, grid: Sequence[Policy], texts: Sequence[int] | None = None, until: float = float("inf")
    ) -> tuple[list[Point], list[int]]:
        """Look a grid up, the best of it on more texts, and small steps around the best.

        Args:
            grid: policies to begin with.
            texts: indices that may be looked at; None: all.
            until: :func:`time.monotonic` after which nothing new is begun: what is known by then counts.

        Returns:
            Policies that were looked up on every text of the second list, fastest first; and those texts.
        """
        among = range(len(self.texts.examples)) if texts is None else texts
        first = self.texts.first(FIRST_TEXTS, among)
        self.progress(f"{len(grid)} policies on {len(first)} texts")
        read = self._look(grid, first, until)
        points = self.points(grid, read)
        if len(read) < len(first) or time.monotonic() >= until:
            return points, read
        chosen = [point.policy for point in promising(points, SECOND_ROUND)]
        rest = sorted(set(among) - set(first))
        self.progress(f"{len(chosen)} policies on {len(among)} texts")
        read += self._look(chosen, rest, until) if rest else []
        found = {point.policy: point for point in self.points(chosen, read)}
        for _ in range(REFINEMENTS):
            if time.monotonic() < until:
                found |= {point.policy: point for point in self._refined(found, read)}
        return sorted(found.values(), key=lambda point: point.seconds), sorted(read)

    def points(self, policies: Sequence[Policy], texts: Sequence[int]) -> list[Point]:
        """These policies on these texts, fastest first."""
        self.simulator.run(policies, texts)
        reference = self.texts.quality({index: self.large[index].tokens for index in texts})
        large_s = self.costs.predict([self.large[index] for index in texts])
        points = []
        for policy in policies:
            outcomes = self.outcomes(policy, texts)
            quality = self.texts.quality({index: outcome.tokens for index, outcome in outcomes.items()})
            loss = {name: reference[name] - value for name, value in quality.items()}
            seconds = self.costs.predict(list(outcomes.values()))
            changed = sum(outcome.tokens != self.large[index].tokens for index, outcome in outcomes.items())
            points.append(Point(policy, quality, loss, seconds, large_s / seconds, changed / len(texts)))
        return sorted(points, key=lambda point: point.seconds)

    def outcomes(self, policy: Policy, texts: Sequence[int]) -> dict[int, Outcome]:
        """What a policy that has been looked up makes of these texts."""
        of_policy = self.simulator.outcomes[policy]
        return {index: of_policy[index] for index in texts}

    def within_budget(self, points: Iterable[Point]) -> list[Point]:
        """Those that lose at most the budget on every set, fastest first."""
        kept = [point for point in points if keeps(point, self.budget)]
        return sorted(kept, key=lambda point: point.seconds)

    def _look(self, policies: Sequence[Policy], texts: Sequence[int], until: float) -> list[int]:
        """Look policies up on these texts, or on as many as time allows; each set has its share of these."""
        turns = self._in_turn(texts)
        done: list[int] = []
        for at in range(0, len(turns), AT_ONCE):
            self.simulator.run(policies, turns[at : at + AT_ONCE])
            done += turns[at : at + AT_ONCE]
            if time.monotonic() >= until:
                break
        return done

    def _in_turn(self, texts: Sequence[int]) -> list[int]:
        """One text of each set after the other."""
        ranks = {i: (rank, name) for name, of_set in self.texts.by_set(texts).items() for rank, i in enumerate(of_set)}
        return sorted(ranks, key=lambda index: ranks[index])

    def _refined(self, found: Mapping[Policy, Point], texts: Sequence[int]) -> list[Point]:
        """Small steps around the fastest within the budget."""
        best = self.within_budget(found.values())[:REFINED]
        fresh = [policy for point in best for policy in neighbours(point.policy) if policy not in found]
        return self.points(list(dict.fromkeys(fresh)), texts)


def keeps(point: Point, budget: float) -> bool:
    """Whether a policy keeps a budget on these texts; a lossless one does by construction, rounding aside."""
    return point.policy.lossless or point.worst_loss <= budget


def distinct(points: Iterable[Point]) -> list[Point]:
    """Without policies that do on these texts what an earlier one does."""
    kept: dict[tuple[float, ...], Point] = {}
    for point in points:
        kept.setdefault((point.seconds, *point.quality.values()), point)
    return list(kept.values())


def pareto(points: Iterable[Point], cost: Callable[[Point], float] = lambda point: point.worst_loss) -> list[Point]:
    """Points that no other beats in both speed and a cost (by default the worst loss), fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.seconds, cost(each))):
        if not front or cost(point) < cost(front[-1]):
            front.append(point)
    return front


def promising(points: Sequence[Point], count: int) -> list[Point]:
    """The best at every speed: half by the loss, half by the share of texts they change, which chance flatters less.

    Few texts may flatter the fastest policies, so slow and safe ones, and the fastest lossless one, are always there.
    """
    lossless = [point for point in points if point.policy.lossless][:1]
    best = [*lossless, *_layers(points, count // 2), *_layers(points, count // 2, lambda point: point.changed)]
    return list({id(point): point for point in best}.values())


def _layers(
    points: Sequence[Point], count: int, cost: Callable[[Point], float] = lambda point: point.worst_loss
) -> list[Point]:
    """The front, then the front of what is left, until there are ``count``."""
    chosen: list[Point] = []
    left = list(points)
    while left and len(chosen) < count:
        front = pareto(left, cost)
        chosen += spaced(front, count - len(chosen))
        on_front = {id(point) for point in front}
        left = [point for point in left if id(point) not in on_front]
    return chosen


def spaced(points: Sequence[Point], count: int) -> list[Point]:
    """At most so many, evenly along a list, its ends among them."""
    if len(points) <= count:
        return list(points)
    steps = np.linspace(0, len(points) - 1, count).round().astype(int)
    return [points[step] for step in dict.fromkeys(steps.tolist())]
