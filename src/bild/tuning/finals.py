"""The last few policies, run for real beside the large model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bild.data.quality import QualityMetric, quality_metric
from bild.decoding import Policy
from bild.evaluation.figures import ALL, summarise
from bild.evaluation.journal import Journal, Record
from bild.evaluation.summary import Summary
from bild.tuning.agreement import AGREEMENT, ROUGE, Agreement, described
from bild.tuning.bench import LARGE, Bench
from bild.tuning.confidence import Bound, losses_by_text
from bild.tuning.grid import method_name
from bild.tuning.judge import Judge, Statistics, worst
from bild.tuning.search import Point, Search, Texts
from bild.tuning.tuned import Finalist

if TYPE_CHECKING:
    from bild.data.examples import Example

FINAL_SECONDS = 90.0
"""Seconds that running the finalists may take; fewer texts where all would take longer."""


@dataclass(frozen=True)
class Finals:
    """Policies and the large model alone on the texts that judge, in turn.

    Args:
        search: knows what was looked up.
        texts: indices of the texts.
        journal: of the runs.
    """

    search: Search
    texts: Sequence[int]
    journal: Journal

    @classmethod
    def run(cls, bench: Bench, search: Search, points: Sequence[Point], texts: Sequence[int], file: Path) -> Finals:
        """Decode these texts, or as many of each set as there is time for; ``file`` keeps what is done."""
        # Seconds are predicted of all these texts.
        seconds = sum(point.seconds for point in points) + points[0].seconds * points[0].speedup
        longest = max(len(indices) for indices in search.texts.by_set(texts).values())
        count = max(1, min(longest, int(longest * FINAL_SECONDS / seconds)))
        about = min(seconds, FINAL_SECONDS)
        bench.say(f"running {len(points)} policies beside the large model alone, about {about:.0f} s")
        few = bench.only(_examples(search, search.texts.first(count, texts)))
        named = {LARGE: Policy.large(), **{method_name(point.policy): point.policy for point in points}}
        return cls(search, texts, few.run([few.method(*each) for each in named.items()], file))

    def summary(self) -> Summary:
        """The figures of what was run."""
        ran = [index for index in self.texts if self._key(index) in self.journal.records]
        return summarise(self.journal, _examples(self.search, ran), baseline=LARGE)

    def finalist(self, point: Point, budget: float, judge: Judge | None) -> Finalist:
        """A policy as it was run.

        Args:
            point: as it was looked up.
            budget: points that may be lost on each set.
            judge: whose bounds decide; None: the loss on these very texts decides.
        """
        statistics = self._statistics(LARGE, self._large()), self._statistics(*self._own(point))
        bounds = self._losses(point.policy, statistics) if judge is None else judge.bounds(point.policy, statistics)
        return Finalist(
            method_name(point.policy), point, bounds, kept=worst(bounds) <= budget, differs=self._differs(point)
        )

    def agreement(self, point: Point) -> dict[str, dict[str, Any]]:
        """How far a policy's texts agree with the large model's, by set and by every measure of that."""
        texts, own = self.search.texts, self._tokens(*self._own(point))
        large = self._tokens(LARGE, self._large())
        metrics = [self._bound(name) for name in (*AGREEMENT, ROUGE)]
        return {
            name: {"texts": len(indices)} | _described(texts, metrics, indices, own, large)
            for name, indices in texts.by_set(self.texts).items()
        }

    def _bound(self, name: str) -> QualityMetric:
        """A metric that knows the large model's texts."""
        if name == ROUGE:
            return quality_metric(ROUGE)
        return Agreement(name, [outcome.tokens for outcome in self.search.large], self.search.surprise)

    def _tokens(self, method: str, looked_up: Mapping[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
        """Of each text as it was run, else as looked up."""
        records = {index: self._record(index, method) for index in self.texts}
        return {i: looked_up[i] if record is None else record.token_ids for i, record in records.items()}

    def fastest(self, finalists: Sequence[Finalist], summary: Summary) -> Finalist:
        """The fastest that was kept, by the clock; where none was, the one that comes nearest."""
        whole = summary.sets.get(ALL) or next(iter(summary.sets.values()))
        kept = [finalist for finalist in finalists if finalist.kept]
        if kept:
            return min(kept, key=lambda finalist: whole.methods[finalist.method].total_s)
        return min(finalists, key=lambda finalist: worst(finalist.bounds))

    def _losses(self, policy: Policy, statistics: tuple[Statistics, Statistics]) -> dict[str, Bound]:
        """The losses as they are, with nothing allowed for chance."""
        score, (large, own) = self.search.texts.score_of, statistics
        losses = {name: float(losses_by_text(score, large[name], own[name]).mean()) for name in own}
        return {
            name: Bound(0.0 if policy.lossless else loss, 0.0 if policy.lossless else loss, len(own[name]))
            for name, loss in losses.items()
        }

    def _statistics(self, method: str, looked_up: Mapping[int, tuple[int, ...]]) -> Statistics:
        """Of the texts that a method was run on as they came out, of the others as looked up."""
        texts = self.search.texts
        rows: dict[str, list[np.ndarray]] = {}
        for index, tokens in self._tokens(method, looked_up).items():
            rows.setdefault(texts.examples[index][0], []).append(texts.of_text(index, tokens))
        return {name: np.array(of_set) for name, of_set in rows.items()}

    def _differs(self, point: Point) -> float:
        method, looked_up = self._own(point)
        ran = {index: record for index in self.texts if (record := self._record(index, method)) is not None}
        other = sum(record.token_ids != looked_up[index] for index, record in ran.items())
        return other / len(ran) if ran else 0.0

    def _own(self, point: Point) -> tuple[str, dict[int, tuple[int, ...]]]:
        outcomes = self.search.outcomes(point.policy, self.texts)
        return method_name(point.policy), {index: outcome.tokens for index, outcome in outcomes.items()}

    def _large(self) -> dict[int, tuple[int, ...]]:
        return {index: self.search.large[index].tokens for index in self.texts}

    def _record(self, index: int, method: str) -> Record | None:
        record = self.journal.records.get(self._key(index), {}).get(method)
        return record if record is not None and record.error is None else None

    def _key(self, index: int) -> tuple[str, str]:
        name, example = self.search.texts.examples[index]
        return name, example.id


def _described(
    texts: Texts,
    metrics: Sequence[QualityMetric],
    indices: Sequence[int],
    own: Mapping[int, tuple[int, ...]],
    large: Mapping[int, tuple[int, ...]],
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for metric in metrics:
        mine, theirs = (
            np.sum([texts.statistics_of(metric, index, tokens[index]) for index in indices], axis=0).tolist()
            for tokens in (own, large)
        )
        figures |= described(metric.name, mine, theirs, metric.score(mine))
    return figures


def _examples(search: Search, texts: Sequence[int]) -> dict[str, list[Example]]:
    """The examples of these indices, by set."""
    return {name: [search.texts.examples[i][1] for i in of_set] for name, of_set in search.texts.by_set(texts).items()}
