"""What the answers come to, group by group, as Spec-Bench counts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bild.decoding import Stats
from bild.evaluation.bootstrap import DEFAULT_RESAMPLES, Bootstrap, Estimate
from bild.evaluation.journal import Record
from bild.evaluation.spec_bench.questions import ALL
from bild.evaluation.summary import Failure
from bild.evaluation.surprise import perplexity

DEFINITIONS = {
    "interval": "95 % percentile interval of a paired bootstrap over questions: the same resamples for every method",
    "tokens_per_second": "mean over questions of new tokens / seconds, all turns, text in to text out",
    "speedup": "tokens a second / tokens a second of the baseline, as Spec-Bench divides the two means",
    "mean_acceptance_length": "1 + accepted draft tokens / rounds: tokens that a pass of the large model yields",
    "same_tokens": "questions whose tokens are all those of the baseline / questions",
    "perplexity": "of the answers under the large model: exp(nats / new tokens), end tokens included",
    "perplexity_change": "perplexity / that of the baseline's answers - 1, in percent",
}
TOKENS_A_SECOND, NATS, TOKENS = range(3)
"""Columns of a question's statistics."""


@dataclass(frozen=True)
class BenchFigures:
    """One method on one group; None where there is nothing to compute a figure from. See ``DEFINITIONS``."""

    tokens_per_second: float
    speedup: Estimate
    mean_acceptance_length: float | None
    same_tokens: float
    perplexity: float | None
    perplexity_change: Estimate
    num_tokens: int
    total_s: float
    counts: dict[str, Any]


@dataclass(frozen=True)
class GroupFigures:
    """All methods on one group of questions."""

    num_questions: int
    """Questions that every method answered: all figures are over these."""
    num_left_out: int
    """Questions on which some method failed."""
    methods: dict[str, BenchFigures]


@dataclass
class BenchSummary:
    """Everything a run says."""

    baseline: str
    groups: dict[str, GroupFigures]
    """By name; with more than one there is also ``"all"``."""
    failures: list[Failure] = field(default_factory=list)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each method says of itself: policy, dtype, versions."""
    bootstrap: dict[str, int] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What else a reader should know, such as lines of the file that could not be used."""

    @property
    def whole(self) -> GroupFigures:
        """Over all questions."""
        return self.groups.get(ALL) or next(iter(self.groups.values()))

    @property
    def num_left_out(self) -> int:
        """Questions on which some method failed."""
        return len({(failure.set, failure.id) for failure in self.failures})

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with the definition of every figure."""
        return {**asdict(self), "definitions": DEFINITIONS}


@dataclass(frozen=True)
class Answer:
    """What one method made of one question."""

    record: Record
    nats: float
    """How surprised the large model is by it."""

    @property
    def row(self) -> list[float]:
        """Its statistics, one for each column."""
        count, seconds = len(self.record.token_ids), self.record.total_s
        return [count / seconds if seconds else 0.0, self.nats, float(count)]


Answers = Mapping[str, Answer]
"""What each method made of a question, by name."""


def group_figures(
    answers: Sequence[Answers], baseline: str, left_out: int, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0
) -> GroupFigures:
    """The figures of a group.

    Args:
        answers: question by question, those that every method answered; at least one.
        baseline: method that the others are compared with.
        left_out: questions that some method failed on.
        resamples: of the bootstrap, 1…
        seed: of the bootstrap.
    """
    bootstrap = Bootstrap(len(answers), resamples, seed)
    methods = list(answers[0])
    tables = {method: np.array([each[method].row for each in answers]) for method in methods}
    sums = {method: np.vstack([table.sum(0), bootstrap.sums(table)]) for method, table in tables.items()}
    return GroupFigures(
        len(answers),
        left_out,
        {method: _figures([(each[method], each[baseline]) for each in answers], sums[method], sums[baseline])
         for method in methods},
    )  # fmt: skip


def _figures(pairs: Sequence[tuple[Answer, Answer]], own: np.ndarray, other: np.ndarray) -> BenchFigures:
    records = [answer.record for answer, _ in pairs]
    stats = Stats.total(Stats(**record.stats) for record in records if record.stats is not None)
    speedups = (own[:, TOKENS_A_SECOND] / other[:, TOKENS_A_SECOND]).tolist()
    changes = [_change(*each) for each in zip(own, other, strict=True)]
    same = sum(answer.record.token_ids == beside.record.token_ids for answer, beside in pairs)
    return BenchFigures(
        tokens_per_second=float(own[0, TOKENS_A_SECOND]) / len(pairs),
        speedup=Estimate.of(speedups[0], speedups[1:]),
        mean_acceptance_length=stats.mean_acceptance_length,
        same_tokens=same / len(pairs),
        perplexity=perplexity(own[0, NATS], int(own[0, TOKENS])),
        perplexity_change=Estimate.of(changes[0], changes[1:]),
        num_tokens=int(own[0, TOKENS]),
        total_s=sum(record.total_s or 0.0 for record in records),
        counts=stats.to_dict(),
    )


def _change(own: np.ndarray, other: np.ndarray) -> float | None:
    """Percent by which one perplexity is above another."""
    if not own[TOKENS] or not other[TOKENS]:
        return None
    return float(100 * np.expm1(own[NATS] / own[TOKENS] - other[NATS] / other[TOKENS]))
