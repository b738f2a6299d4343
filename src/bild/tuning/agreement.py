"""Quality without references: how far a text agrees with what the large model writes alone.

All four are sums over texts, so budgets, intervals and confidence are those of any other metric. A text that differs
may be as good: agreement counts it as lost, perplexity asks the large model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bild.data.examples import Example
from bild.data.quality import LABELS, quality_metric
from bild.decoding.common import common
from bild.errors import InputError
from bild.evaluation.surprise import perplexity

Tokens = tuple[int, ...]
SAME_TOKENS, SAME_PREFIX, PERPLEXITY, ROUGE = "same_tokens", "same_prefix", "perplexity", "rougeL"
AGREEMENT = {
    SAME_TOKENS: "same tokens",
    SAME_PREFIX: "same prefix",
    PERPLEXITY: "perplexity",
}
"""Metrics that need no references beside those of :mod:`bild.data.quality`, and what they are called, as in
``bild evaluate``."""
UNITS = {
    SAME_TOKENS: "percent of the texts that are not the large model's own, token for token",
    SAME_PREFIX: "percent of the large model's tokens that come after the first difference",
    PERPLEXITY: "percent more perplexity, under the large model, than its own texts have",
}
"""What a budget of each counts."""


@dataclass
class Agreement:
    """A :class:`~bild.data.quality.QualityMetric` of tokens beside the large model's own.

    ``same_tokens``: texts whose tokens are all those of the large model / texts. ``same_prefix``: tokens before the
    first difference / tokens of the large model. ``perplexity``: −100 × the mean of −log p_L of a token, so that a
    difference of 1 is 1 percent of perplexity.

    Args:
        name: of :data:`AGREEMENT`.
        large: the large model's own texts, by index; empty as long as nobody has read them.
        surprise: −log of the probability that the large model gives to a text, by its index.
    """

    name: str
    large: Sequence[Tokens] = ()
    surprise: Callable[[int, Tokens], float] = lambda index, tokens: 0.0
    size: int = 2

    def signature(self, num_references: int | None) -> str:
        """What it is compared with."""
        return f"against:large|{UNITS[self.name]}"

    def statistics(self, text: str, references: Sequence[str]) -> Sequence[float]:
        """Not of texts; see :meth:`of_tokens`."""
        raise TypeError(f"{self.name} is counted in tokens")

    def of_tokens(self, index: int, tokens: Tokens) -> Sequence[float]:
        """What the tokens written for text ``index`` add."""
        own = self.large[index]
        if self.name == SAME_TOKENS:
            return [float(tokens == own), 1.0]
        if self.name == SAME_PREFIX:
            return [float(common(tokens, own)), float(len(own))]
        return [self.surprise(index, tokens), float(len(tokens))]

    def score(self, sums: Sequence[float]) -> float | None:
        """The score of added-up statistics; higher is better."""
        if not sums[1]:
            return None
        return (-100 if self.name == PERPLEXITY else 100) * sums[0] / sums[1]


def metric_named(name: str) -> Any:
    """A metric by its name, of :data:`AGREEMENT` or of :mod:`bild.data.quality`.

    Raises:
        InputError: no such name.
    """
    if name in AGREEMENT:
        return Agreement(name)
    try:
        return quality_metric(name)
    except InputError as error:
        if name.partition(":")[0] in LABELS:
            raise
        raise InputError(f"{error}, {', '.join(AGREEMENT)}") from None


def label_of(name: str) -> str:
    """What a metric is called in a sentence."""
    return AGREEMENT.get(name, LABELS.get(name, name))


def promise(name: str, budget: float) -> str:
    """What a budget allows, in the metric's unit."""
    if name in UNITS:
        return f"at most {budget:g} {UNITS[name]}, on each set"
    return f"at most {budget:g} {label_of(name)} less than the large model on each set"


def without_references(sets: Mapping[str, Sequence[Example]]) -> bool:
    """Whether these are prompts alone.

    Raises:
        InputError: some have references and some do not.
    """
    lacking = [(name, each.id) for name, members in sets.items() for each in members if not each.references]
    if lacking and len(lacking) < sum(map(len, sets.values())):
        name, id = lacking[0]
        raise InputError(
            f"{name}: example {id} has no reference and others have; give one for each, or prompts alone, which are "
            "then compared with the large model's own texts"
        )
    return bool(lacking)


def referring(sets: Mapping[str, Sequence[Example]], texts: Sequence[str]) -> dict[str, list[Example]]:
    """The same examples, each with the large model's own text as its reference."""
    own = iter(texts)
    return {name: [replace(each, references=(next(own),)) for each in members] for name, members in sets.items()}


def described(name: str, own: Sequence[float], large: Sequence[float], score: float | None) -> dict[str, Any]:
    """A metric of a set for the reader: perplexities as they are, all else as a score.

    Args:
        name: of the metric.
        own: summed statistics of a policy.
        large: of the large model.
        score: of ``own``.
    """
    if name != PERPLEXITY:
        return {name: None if score is None else round(score, 4)}
    mine, theirs = (perplexity(sums[0], int(sums[1])) for sums in (own, large))
    if mine is None or theirs is None:
        return {name: None}
    return {name: round(mine, 4), f"{name}_large": round(theirs, 4), f"{name}_change": round(mine / theirs - 1, 6)}
