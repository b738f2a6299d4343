"""Quality metrics as sums over examples: a corpus score, and its bootstrap, follow from summed statistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, Protocol

ROUGE = ("rouge1", "rouge2", "rougeL")
TASKS = {
    "translation": ("bleu", "chrf"),
    "summarization": ("rouge1", "rouge2", "rougeL"),
    "completion": ("exact_match", "rougeL"),
    "chat": ("exact_match", "rougeL"),
}
"""Metrics shown first, by task."""
LABELS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "exact match",
}


class Metric(Protocol):
    """A score from 0 to 100 that is a function of statistics summed over examples."""

    name: str
    size: int
    """Statistics an example."""

    def signature(self, num_references: int | None) -> str:
        """What makes the score reproducible; None: the number of references differs between examples."""
        ...

    def statistics(self, text: str, references: Sequence[str]) -> Sequence[float]:
        """What one text adds; it has one reference or more."""
        ...

    def score(self, sums: Sequence[float]) -> float | None:
        """The score of added-up statistics, None of no texts."""
        ...


class Sacrebleu:
    """BLEU or chrF as sacrebleu counts them."""

    def __init__(self, name: str) -> None:
        from sacrebleu.metrics import BLEU, CHRF

        self.name = name
        self._metric: Any = BLEU(force=True) if name == "bleu" else CHRF()
        self.size = len(self.statistics("a", ["a"]))

    def signature(self, num_references: int | None) -> str:
        """sacrebleu's own signature."""
        self._metric.num_refs = -1 if num_references is None else num_references
        return str(self._metric.get_signature())

    def statistics(self, text: str, references: Sequence[str]) -> Sequence[float]:
        """Matched and possible n-grams and lengths."""
        statistics: list[float] = self._metric._extract_corpus_statistics([text], [[one] for one in references])[0]
        return statistics

    def score(self, sums: Sequence[float]) -> float | None:
        """The corpus score: of all n-grams, not a mean of sentence scores."""
        if not any(sums):
            return None
        return float(self._metric._compute_score_from_stats(list(sums)).score)


class MeanMetric:
    """A mean over texts; its statistics are the scores themselves and how many there are."""

    def __init__(self, name: str) -> None:
        self.name, self.size = name, 2

    def signature(self, num_references: int | None) -> str:
        """What is averaged, and which reference counts where there are several."""
        count = "var" if num_references is None else num_references
        if self.name == "exact_match":
            return f"nrefs:{count}|any|case:mixed|strip:yes|mean over texts"
        return f"nrefs:{count}|best|F1|stemmer:porter|mean over texts|rouge-score:{version('rouge-score')}"

    def statistics(self, text: str, references: Sequence[str]) -> Sequence[float]:
        """Score of one text, 0…1, and 1."""
        if self.name == "exact_match":
            return [float(text.strip() in [one.strip() for one in references]), 1.0]
        return [_rouge(text, tuple(references))[self.name], 1.0]

    def score(self, sums: Sequence[float]) -> float | None:
        """100 times the mean."""
        return 100 * sums[0] / sums[1] if sums[1] else None


def metrics() -> list[Metric]:
    """All metrics: BLEU, chrF, ROUGE-1, ROUGE-2, ROUGE-L, exact match."""
    return [Sacrebleu("bleu"), Sacrebleu("chrf"), *map(MeanMetric, ROUGE), MeanMetric("exact_match")]


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)


@lru_cache(maxsize=16)
def _rouge(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """All three at once: the metrics ask one after the other for the same text."""
    scores = _rouge_scorer().score_multi(list(references), text)
    return {name: float(score.fmeasure) for name, score in scores.items()}
