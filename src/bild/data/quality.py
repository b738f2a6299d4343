"""Quality metrics as sums over examples: a corpus score, and its bootstrap, follow from summed statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol

from bild.data.words import is_unspaced, words
from bild.errors import InputError, one_line

ROUGE = ("rouge1", "rouge2", "rougeL")
TASKS = {
    "translation": ("bleu", "chrf"),
    "summarization": ("rouge1", "rouge2", "rougeL"),
    "completion": ("exact_match", "rougeL"),
    "chat": ("exact_match", "rougeL"),
}
"""Metrics shown first, by task."""
BUDGETED = {"translation": "bleu", "summarization": "rougeL", "completion": "rougeL", "chat": "rougeL"}
"""The metric a quality budget counts, by task."""
LABELS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "exact_match": "exact match",
}
PACKAGES = {"bleu": "sacrebleu", "chrf": "sacrebleu", **dict.fromkeys(ROUGE, "rouge_score")}
"""What a metric is computed with, where that is not bild itself."""
DEFAULT_TOKENIZER = "13a"
"""How BLEU finds words unless asked otherwise: for languages with spaces between them."""
BY_SPACES = ("13a", "intl", "none")
TOKENIZERS = (*BY_SPACES, "zh", "char", "ja-mecab", "ko-mecab", "flores101", "flores200")
"""sacrebleu's, by its own names."""


class QualityMetric(Protocol):
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
    """BLEU or chrF as sacrebleu counts them.

    Args:
        name: ``"bleu"`` or ``"chrf"``.
        tokenizer: of BLEU, one of :data:`TOKENIZERS`.

    Raises:
        InputError: an unknown tokenizer, or one whose package or model is missing.
    """

    def __init__(self, name: str, tokenizer: str = DEFAULT_TOKENIZER) -> None:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        if tokenizer not in TOKENIZERS:
            raise InputError(f"BLEU's tokenizer is {tokenizer!r}; allowed are {', '.join(TOKENIZERS)}")
        self.name, self.tokenizer = name, tokenizer
        try:
            self._metric: Any = BLEU(force=True, tokenize=tokenizer) if name == "bleu" else CHRF()
        except Exception as error:  # a package that is missing, or a model that cannot be fetched
            extra = f"; pip install 'sacrebleu[{tokenizer[:2]}]'" if tokenizer.endswith("-mecab") else ""
            raise InputError(f"BLEU's tokenizer {tokenizer} cannot be used ({one_line(error)}){extra}") from None
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
        return (
            f"nrefs:{count}|best|F1|words:unicode|stemmer:porter|mean over texts|rouge-score:{version('rouge-score')}"
        )

    def statistics(self, text: str, references: Sequence[str]) -> Sequence[float]:
        """Score of one text, 0…1, and 1."""
        if self.name == "exact_match":
            return [float(text.strip() in [one.strip() for one in references]), 1.0]
        return [_rouge(text, tuple(references))[self.name], 1.0]

    def score(self, sums: Sequence[float]) -> float | None:
        """100 times the mean."""
        return 100 * sums[0] / sums[1] if sums[1] else None


def metrics(bleu_tokenizer: str = DEFAULT_TOKENIZER) -> list[QualityMetric]:
    """All metrics: BLEU, chrF, ROUGE-1, ROUGE-2, ROUGE-L, exact match.

    Args:
        bleu_tokenizer: how BLEU finds words, one of :data:`TOKENIZERS`.

    Raises:
        InputError: see :class:`Sacrebleu`.
    """
    return [Sacrebleu("bleu", bleu_tokenizer), Sacrebleu("chrf"), *map(MeanMetric, ROUGE), MeanMetric("exact_match")]


def quality_metric(text: str) -> QualityMetric:
    """One metric by its name, BLEU also with a tokenizer: ``"rougeL"``, ``"bleu"``, ``"bleu:zh"``.

    Raises:
        InputError: an unknown name, a package that is missing, or as :class:`Sacrebleu`.
    """
    name, colon, tokenizer = text.partition(":")
    if name not in LABELS or (colon and name != "bleu"):
        raise InputError(f"metric is {text!r}; allowed are {', '.join(LABELS)}, and bleu:TOKENIZER")
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise InputError(f"{package} is not installed; pip install 'bild[eval]'")
    if PACKAGES.get(name) == "sacrebleu":
        return Sacrebleu(name, tokenizer if colon else DEFAULT_TOKENIZER)
    return MeanMetric(name)


def misjudges(metric: QualityMetric, references: Iterable[str]) -> str | None:
    """Why a metric says nothing about texts like these references; None where it does.

    BLEU looks for words between spaces: of a text without any, a whole sentence is one word, right or wrong.
    """
    if not isinstance(metric, Sacrebleu) or metric.name != "bleu" or metric.tokenizer not in BY_SPACES:
        return None
    if not is_unspaced(references):
        return None
    return (
        f"BLEU with the tokenizer {metric.tokenizer} takes a sentence without spaces for one word; "
        "use chrF, or BLEU's tokenizer zh (Chinese), ja-mecab, char or flores200"
    )


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), tokenizer=_Words())


class _Words:
    """What rouge-score asks for words."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@lru_cache(maxsize=16)
def _rouge(text: str, references: tuple[str, ...]) -> dict[str, float]:
    """All three at once: the metrics ask one after the other for the same text."""
    if not any(map(words, references)):
        # Emoji, or a row of dots: without a word there is only the same and not the same.
        return dict.fromkeys(ROUGE, float(text.strip() in [one.strip() for one in references]))
    scores = _rouge_scorer().score_multi(list(references), text)
    return {name: float(score.fmeasure) for name, score in scores.items()}
