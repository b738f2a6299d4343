"""Policies that one half of the texts proposes, judged by the other half.

They are judged from the safest to the fastest, and the first that fails ends it. Such a fixed sequence needs no
correction for how many are judged (fixed-sequence testing in Learn then Test; Angelopoulos, Bates, Candès, Jordan,
Lei 2021), since the half that judges has no say in the order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from bild.decoding import Policy
from bild.tuning.confidence import Bound, Level, losses_by_text
from bild.tuning.grid import method_name
from bild.tuning.search import Point, Search, pareto, spaced

CANDIDATES = 6
"""Policies that are judged, at most."""
SPLIT_SEED = 20

Statistics = Mapping[str, np.ndarray]
"""What each text adds to the score, by set: ``[texts, size]``."""


@dataclass(frozen=True)
class Judged:
    """A policy on the texts that judge."""

    point: Point
    bounds: Mapping[str, Bound]
    """By set. A lossless policy loses nothing, whatever the texts."""
    kept: bool
    """Whether its upper end and that of all safer policies stay within the budget on every set."""

    @property
    def policy(self) -> Policy:
        """The policy that was judged."""
        return self.point.policy

    def to_dict(self) -> dict[str, Any]:
        """Name, verdict and bounds by set, as plain JSON values."""
        bounds = {name: each.to_dict() for name, each in self.bounds.items()}
        speedup = round(self.point.speedup, 4)
        return {"method": method_name(self.policy), "predicted_speedup": speedup, "kept": self.kept, "sets": bounds}


@dataclass(frozen=True)
class Verdict:
    """What the texts that judge say."""

    confidence: float
    judged: Sequence[Judged]
    """Policies, the safest first."""
    too_small: Mapping[str, int]
    """Texts that sets lack until any policy that may lose something could be kept; empty: none lacks any."""
    hoped: Judged | None
    """Of the policies that were proposed and not kept, the one that the fewest more texts would settle."""
    missing: Mapping[str, int | None]
    """Texts that sets lack until they would settle that it keeps the budget, if its loss stays; None: none would."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        hoped = None if self.hoped is None else method_name(self.hoped.policy)
        return {
            "confidence": self.confidence,
            "judged": [each.to_dict() for each in self.judged],
            "too_small_by": dict(self.too_small),
            "not_settled": hoped,
            "texts_missing": dict(self.missing),
        }


def halves(sets: Mapping[str, Sequence[int]]) -> tuple[list[int], list[int]]:
    """The texts that propose and those that judge: half of each set, drawn the same way every time.

    Args:
        sets: indices of texts, by set; a text that is alone in its set does both.
    """
    propose: list[int] = []
    judge: list[int] = []
    for indices in sets.values():
        drawn = Random(SPLIT_SEED).sample(list(indices), len(indices))
        propose += drawn[: max(1, len(drawn) // 2)]
        judge += drawn[len(drawn) // 2 :]
    return sorted(propose), sorted(judge)


class Judge:
    """Tells which policies keep a budget with a confidence.

    Args:
        search: knows what policies write.
        budget: points that may be lost on each set.
        confidence: that it is kept on all sets, 0.5…1, both excluded.
    """

    def __init__(self, search: Search, budget: float, confidence: float) -> None:
        self.search, self.budget, self.confidence = search, budget, confidence
        self.level = Level(confidence)
        self.changed: dict[str, float] = {}
        """Points that a changed text typically stands for, by set; learnt from the texts that propose."""

    def candidates(self, points: Sequence[Point], texts: Sequence[int]) -> list[Point]:
        """What is worth judging, the safest first: the fastest lossless policy, then those that no other beats.

        Beats is: is both faster and surer of the budget.

        Args:
            points: looked up on the texts that propose.
            texts: these texts.
        """
        self.changed = self._typical(points, texts)
        safe = min((point for point in points if point.policy.lossless), key=lambda point: point.seconds)
        hopeful = [point for point in points if point.seconds < safe.seconds and point.worst_loss <= self.budget]
        upper = {id(point): worst(self.bounds(point.policy, self.statistics(point.policy, texts))) for point in hopeful}
        return [safe, *spaced(pareto(hopeful, lambda point: upper[id(point)])[::-1], CANDIDATES - 1)]

    def judge(self, candidates: Sequence[Point], texts: Sequence[int]) -> list[Judged]:
        """All candidates on these texts, in their order; from the first that fails none is kept.

        Args:
            candidates: the safest first.
            texts: which had no part in proposing them.
        """
        here = {point.policy: point for point in self.search.points([each.policy for each in candidates], texts)}
        judged, so_far = [], True
        for candidate in candidates:
            bounds = self.bounds(candidate.policy, self.statistics(candidate.policy, texts))
            so_far = so_far and worst(bounds) <= self.budget
            judged.append(Judged(here[candidate.policy], bounds, so_far))
        return judged

    def statistics(self, policy: Policy, texts: Sequence[int]) -> tuple[Statistics, Statistics]:
        """Of the large model's texts and of the policy's."""
        own = {index: outcome.tokens for index, outcome in self.search.outcomes(policy, texts).items()}
        large = {index: self.search.large[index].tokens for index in texts}
        return self.search.texts.statistics(large), self.search.texts.statistics(own)

    def bounds(self, policy: Policy, statistics: tuple[Statistics, Statistics]) -> dict[str, Bound]:
        """The bound of a policy's loss, by set.

        Args:
            policy: lossless ones lose nothing but by rounding, which no bound is needed for.
            statistics: of the large model's texts and of its own.
        """
        large, own = statistics
        if policy.lossless:
            return {name: Bound(0.0, 0.0, len(rows)) for name, rows in own.items()}
        score = self.search.texts.score_of
        return {name: self.level.bound(score, large[name], own[name], self.changed.get(name, 0.0)) for name in own}

    def verdict(self, judged: Sequence[Judged], texts: Sequence[int]) -> Verdict:
        """All that these texts say."""
        hoped = min((each for each in judged if not each.kept), key=self._lacks, default=None)
        faster = any(each.kept and not each.policy.lossless for each in judged)
        too_small = {} if faster else self._too_small(texts)
        missing = {} if hoped is None else self._missing(hoped)
        return Verdict(self.confidence, judged, too_small, hoped, missing)

    def _lacks(self, judged: Judged) -> tuple[float, float]:
        """How many texts would settle it, all sets together; of equals the fastest comes first."""
        missing = self._missing(judged).values()
        return sum(math.inf if n is None else n for n in missing), judged.point.seconds

    def _missing(self, judged: Judged) -> dict[str, int | None]:
        """For each set that does not settle it, of all texts of a set: those that propose grow with the others."""
        needed = {
            name: self.level.needed(bound, self.budget, self.changed.get(name, 0.0))
            for name, bound in judged.bounds.items()
            if bound.upper > self.budget
        }
        return {name: None if n is None else 2 * (n - judged.bounds[name].texts) for name, n in needed.items()}

    def _too_small(self, texts: Sequence[int]) -> dict[str, int]:
        """Where even a policy that loses nothing on these texts would not be kept.

        The changes that so few texts may have missed then outweigh the budget. A budget of 0 is for lossless
        policies, whatever the number.
        """
        counts = {name: len(indices) for name, indices in self.search.texts.by_set(texts).items()}
        fewest = {name: self.level.fewest(self.budget, self.changed.get(name, 0.0)) for name in counts}
        return {name: 2 * (n - counts[name]) for name, n in fewest.items() if n is not None and n > counts[name]}

    def _typical(self, points: Sequence[Point], texts: Sequence[int]) -> dict[str, float]:
        """Root mean square of what changed texts stand for, by the policies of the front.

        Where none is changed, nothing is known of such texts: one might lose all that the large model's are worth.
        """
        squares: dict[str, list[float]] = {name: [] for name in self.search.texts.sets}
        for point in spaced([point for point in pareto(points) if not point.policy.lossless], CANDIDATES):
            large, own = self.statistics(point.policy, texts)
            for name in own:
                values = losses_by_text(self.search.texts.score_of, large[name], own[name])
                squares[name] += np.square(values[(large[name] != own[name]).any(1)]).tolist()
        whole = self.search.texts.quality({index: self.search.large[index].tokens for index in texts})
        # A score may be a loss itself, as of perplexity.
        most = {name: abs(value) for name, value in whole.items()}
        return {name: math.sqrt(float(np.mean(squares[name]))) if squares[name] else most[name] for name in most}


def worst(bounds: Mapping[str, Bound]) -> float:
    """The highest upper end of any set."""
    return max(bound.upper for bound in bounds.values())
