"""From records to figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bild.data.examples import Example
from bild.data.quality import DEFAULT_TOKENIZER, QualityMetric, metrics, misjudges
from bild.decoding.common import common
from bild.errors import InputError
from bild.evaluation.bootstrap import DEFAULT_RESAMPLES, Bootstrap, Estimate
from bild.evaluation.journal import Journal, Record
from bild.evaluation.method import LAYERS_RUN, TOKENS_READ
from bild.evaluation.summary import Failure, MethodFigures, SetFigures, Summary

MS = 1e3
ALL = "all"
SECONDS = -1
"""Column of the time, the last."""

Row = tuple[Example, dict[str, Record]]
"""An example and what each method made of it."""


def summarise(
    journal: Journal,
    sets: Mapping[str, Sequence[Example]],
    *,
    baseline: str | None = None,
    task: str = "translation",
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    bleu_tokenizer: str = DEFAULT_TOKENIZER,
) -> Summary:
    """The figures of a finished run.

    Args:
        journal: a record of every method on every example.
        sets: the examples.
        baseline: method that speedup, differences and agreement refer to; None: ``large`` if it is
            there, else the first.
        task: chooses the metrics shown first; all are computed.
        resamples: of the bootstrap, 1…
        seed: of the bootstrap.
        bleu_tokenizer: how BLEU finds words, one of :data:`bild.data.quality.TOKENIZERS`.

    Raises:
        InputError: an unknown baseline, or no text that every method decoded.
    """
    failed, failures = _failures(journal)
    methods = [name for name in journal.methods if name not in failed]
    chosen = choose_baseline(methods, baseline, failed)
    rows = {name: [(example, journal.records[name, example.id]) for example in members]
            for name, members in sets.items()}  # fmt: skip
    if len(rows) > 1:
        rows[ALL] = [row for members in rows.values() for row in members]
    figures = _Figures(methods, chosen, resamples, seed, bleu_tokenizer)
    references = [reference for members in sets.values() for example in members for reference in example.references]
    warnings = [misjudges(metric, references) for metric in figures.metrics]
    return Summary(
        baseline=chosen,
        task=task,
        sets={name: figures.of_set(members, name) for name, members in rows.items()},
        failed=failed,
        failures=failures,
        notes=[warning for warning in warnings if warning is not None],
        bootstrap={"resamples": resamples, "seed": seed},
    )


def choose_baseline(methods: Sequence[str], wanted: str | None, failed: Mapping[str, str]) -> str:
    """The method the others are compared with.

    Raises:
        InputError: it is not among those with figures.
    """
    if not methods:
        name, why = next(iter(failed.items()))
        raise InputError(f"no method is left to compare; {name}: {why}")
    if wanted is None:
        by_likeness = sorted(methods, key=lambda name: (name != "large", name.split(":")[0] != "large"))
        return by_likeness[0]
    if wanted in failed:
        raise InputError(f"the baseline {wanted!r} has no figures: {failed[wanted]}; name another with --baseline")
    if wanted not in methods:
        raise InputError(f"baseline is {wanted!r}; allowed are {', '.join(methods)}")
    return wanted


def _failures(journal: Journal) -> tuple[dict[str, str], list[Failure]]:
    """Methods that failed on most texts, and every single failure.

    Such a method is broken; left in, it would take its texts away from all the others.
    """
    failures = [
        Failure(record.set, record.id, record.method, record.error)
        for records in journal.records.values()
        for record in records.values()
        if record.error is not None
    ]
    failed = {}
    for name in journal.methods:
        own = [failure for failure in failures if failure.method == name]
        if 2 * len(own) > len(journal.records):
            failed[name] = f"failed on {len(own)} of {len(journal.records)} texts, first with: {own[0].error}"
    return failed, failures


@dataclass
class _Figures:
    """Computes the figures of sets; remembers statistics of texts, which methods often share."""

    methods: Sequence[str]
    baseline: str
    resamples: int
    seed: int
    bleu_tokenizer: str = DEFAULT_TOKENIZER

    def __post_init__(self) -> None:
        self.metrics: list[QualityMetric] = metrics(self.bleu_tokenizer)
        self.remembered: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}

    def of_set(self, members: Sequence[Row], name: str) -> SetFigures:
        """Figures over the examples that every method decoded."""
        rows = [row for row in members if all(row[1][method].error is None for method in self.methods)]
        if not rows:
            raise InputError(f"set {name!r} has no text that every method decoded; leave out a method that fails")
        bootstrap = Bootstrap(len(rows), self.resamples, self.seed)
        columns = {method: self._columns(rows, method) for method in self.methods}
        # One method at a time: the same numbers then give the same sums, and a method differs from itself by 0.
        sums = {method: (table.sum(0), bootstrap.sums(table)) for method, table in columns.items()}
        referenced = [len(example.references) for example, _ in rows if example.references]
        return SetFigures(
            num_examples=len(rows),
            num_left_out=len(members) - len(rows),
            num_with_references=len(referenced),
            methods={method: self._of_method(rows, method, sums, bool(referenced)) for method in self.methods},
            signatures=self._signatures(set(referenced)),
        )

    def _signatures(self, counts: set[int]) -> dict[str, str]:
        number = next(iter(counts)) if len(counts) == 1 else None
        return {metric.name: metric.signature(number) for metric in self.metrics if counts}

    def _columns(self, rows: Sequence[Row], method: str) -> np.ndarray:
        """Statistics of every metric, then the seconds: ``[examples, columns]``."""
        return np.array(
            [[*self._statistics(records[method].text, example.references), _seconds(records[method])]
             for example, records in rows]
        )  # fmt: skip

    def _statistics(self, text: str, references: tuple[str, ...]) -> np.ndarray:
        key = (text, references)
        if key not in self.remembered:
            parts = [metric.statistics(text, references) if references else [0.0] * metric.size
                     for metric in self.metrics]  # fmt: skip
            self.remembered[key] = np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])
        return self.remembered[key]

    def _of_method(
        self, rows: Sequence[Row], method: str, sums: Mapping[str, tuple[np.ndarray, np.ndarray]], referenced: bool
    ) -> MethodFigures:
        records = [records[method] for _, records in rows]
        beside = [records[self.baseline] for _, records in rows]
        quality, difference = self._quality(sums[method], sums[self.baseline]) if referenced else ({}, {})
        return MethodFigures(
            quality=quality,
            difference=difference,
            speedup=_speedup(sums[method], sums[self.baseline]),
            **_times(records),
            **_rates(records),
            **_agreement(records, beside),
        )

    def _quality(
        self, own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
    ) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
        quality, difference, start = {}, {}, 0
        for metric in self.metrics:
            part = slice(start, start + metric.size)
            start += metric.size
            values, others = (_scores(metric, totals[part], sums[:, part]) for totals, sums in (own, other))
            apart = [_less(a, b) for a, b in zip(values, others, strict=True)]
            quality[metric.name] = Estimate.of(values[0], values[1:])
            difference[metric.name] = Estimate.of(apart[0], apart[1:])
        return quality, difference


def _scores(metric: QualityMetric, totals: np.ndarray, sums: np.ndarray) -> list[float | None]:
    """The score of all examples, then of each resample."""
    return [metric.score(row) for row in [totals.tolist(), *sums.tolist()]]


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _seconds(record: Record) -> float:
    assert record.total_s is not None
    return record.total_s


def _speedup(own: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> Estimate:
    ratio = float(other[0][SECONDS] / own[0][SECONDS])
    return Estimate.of(ratio, (other[1][:, SECONDS] / own[1][:, SECONDS]).tolist())


def _times(records: Sequence[Record]) -> dict[str, Any]:
    seconds = np.array([_seconds(record) for record in records])
    firsts = [record.ttft_s for record in records if record.ttft_s is not None]
    tokens = sum(len(record.token_ids) for record in records)
    return {
        "latency_median_ms": float(np.median(seconds)) * MS,
        "latency_p95_ms": float(np.percentile(seconds, 95)) * MS,
        "ms_per_token": float(seconds.sum()) * MS / tokens if tokens else None,
        "ttft_median_ms": float(np.median(firsts)) * MS if firsts else None,
        "num_tokens": tokens,
        "total_s": float(seconds.sum()),
    }


def _rates(records: Sequence[Record]) -> dict[str, Any]:
    from bild.decoding import Stats
    from bild.decoding.stats import RATES

    counted = [Stats(**record.stats) for record in records if record.stats is not None]
    total = Stats.total(counted)
    # A model alone drafts nothing: its rates are None, not 0.
    rates = {name: getattr(total, name) for name in RATES}
    own = sum((Counter(record.counts) for record in records if record.counts is not None), Counter())
    rates["mean_layers"] = own[LAYERS_RUN] / own[TOKENS_READ] if own[TOKENS_READ] else None
    return {**rates, "counts": {**total.to_dict(), **own} if counted else None}


def _agreement(records: Sequence[Record], beside: Sequence[Record]) -> dict[str, Any]:
    pairs = [(own.token_ids, other.token_ids) for own, other in zip(records, beside, strict=True)]
    of = sum(len(other) for _, other in pairs)
    return {
        "same_tokens": sum(own == other for own, other in pairs) / len(pairs),
        "same_prefix": sum(common(own, other) for own, other in pairs) / of if of else None,
    }
