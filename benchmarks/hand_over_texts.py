"""Texts that hand-over rules are looked up on, and their figures with paired bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hand_over_rules import Rule, Seen, look_up, walk

from bild import BigLittleDecoder
from bild.data.examples import Example
from bild.data.quality import quality_metric
from bild.generation.text import decode
from bild.tuning.agreement import referring
from bild.tuning.bench import Bench
from bild.tuning.costs import CostModel, features
from bild.tuning.search import Search, Texts
from bild.tuning.simulation import Outcome, Simulator
from bild.tuning.traces import Node

LEVELS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of latency, at which families are compared."""
DRAWS = 300
BLEU, TO_LARGE = "bleu", "bleu_to_large"
MEASURES = (BLEU, TO_LARGE)
NUMBERS = ("score", "threshold", "window", "rollback", "end", "keeps")


@dataclass
class Looked:
    """Texts, and what has been looked up of them."""

    search: Search
    texts: dict[str, Texts]
    """Once with the references, once with the large model's own texts in their place."""

    @property
    def everything(self) -> list[int]:
        """All indices."""
        return list(range(len(self.search.large)))

    def run(self, rules: Sequence[Rule]) -> None:
        """Look rules up on all texts."""
        self.search.simulator.run(rules, self.everything)

    def outcomes(self, rule: Rule) -> list[Outcome]:
        """Of a rule that was looked up, text by text."""
        of_rule = self.search.simulator.outcomes[rule]
        return [of_rule[index] for index in self.everything]

    def point(self, rule: Rule) -> Point:
        """Figures of a rule that was looked up."""
        outcomes = self.outcomes(rule)
        tokens = {index: outcome.tokens for index, outcome in enumerate(outcomes)}
        latency = self.search.costs.predict(outcomes) / self.search.costs.predict(self.search.large)
        quality = {name: mean(texts.quality(tokens).values()) for name, texts in self.texts.items()}
        return Point(rule, latency, quality)


@dataclass(frozen=True)
class Point:
    """A rule on a part of the data."""

    rule: Rule
    latency: float
    """Of the large model alone: 1."""
    quality: dict[str, float]
    """By measure, the mean of the sets."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = {name: getattr(self.rule, name) for name in NUMBERS}
        return {**values, "end": str(values["end"]), "latency": self.latency, **self.quality}


def mean(numbers: Iterable[float]) -> float:
    """Of a few numbers."""
    return float(np.mean(list(numbers)))


def look(
    decoder: BigLittleDecoder, sets: Mapping[str, Sequence[Example]], file: Path, prices: Sequence[float], longest: int
) -> Looked:
    """Read what both models say of a part of the data.

    Args:
        decoder: the pair.
        sets: examples by name.
        file: keeps what has been read.
        prices: of a :class:`~bild.tuning.costs.CostModel`.
        longest: of a text, in tokens.
    """
    name = file.stem
    bench = Bench(
        decoder,
        sets,
        options={"max_new_tokens": longest},
        say=lambda line: None if line.endswith("read") else print(f"{name}: {line}", flush=True),
    ).usable()
    search = bench.search(file, "bleu", CostModel(tuple(prices)))
    texts = [decode(decoder.tokenizer, outcome.tokens) for outcome in search.large]
    own = Texts(referring(bench.sets, texts), quality_metric("bleu"), search.texts.detokenise)
    search.simulator = Simulator(search.simulator.trees, search.simulator.reader, look_up)
    return Looked(search, {BLEU: search.texts, TO_LARGE: own})


def watch(looked: Looked, rollback: float) -> Seen:
    """What was known of every token that the large model judged in drafts of ten, and whether it stood."""
    seen, simulator, rule = Seen(), looked.search.simulator, Rule("nothing", 0.0, 10, rollback, math.inf)

    def one(index: int) -> Iterator[Node]:
        yield from walk(simulator.trees[index], rule, seen)

    simulator.reader.follow({index: one(index) for index in looked.everything})
    return seen


def own_tokens(looked: Looked) -> dict[int, tuple[int, ...]]:
    """The large model's own texts."""
    return {index: outcome.tokens for index, outcome in enumerate(looked.search.large)}


def resamples(looked: Looked) -> np.ndarray:
    """How often each text counts ``[draws, texts]``; the first draw is the texts as they are."""
    rng = np.random.default_rng(0)
    counts = np.ones((DRAWS + 1, len(looked.everything)))
    for indices in looked.search.texts.by_set(looked.everything).values():
        drawn = rng.multinomial(len(indices), np.full(len(indices), 1 / len(indices)), size=DRAWS)
        counts[1:, indices] = drawn
    return counts


def latencies(looked: Looked, rule: Rule, draws: np.ndarray) -> np.ndarray:
    """Of a rule, against the large model alone ``[draws]``."""
    prices = np.array(looked.search.costs.seconds)
    own, large = (np.array([features(each) for each in outcomes]) @ prices
                  for outcomes in (looked.outcomes(rule), looked.search.large))  # fmt: skip
    ratio: np.ndarray = (draws @ own) / (draws @ large)
    return ratio


def curve(looked: Looked, rules: Sequence[Rule], measure: str, draws: np.ndarray) -> np.ndarray:
    """Quality at each of the levels of latency ``[draws, levels]``, between rules on a straight line."""
    speeds = np.array([latencies(looked, rule, draws) for rule in rules]).T
    values = np.array([qualities(looked, rule, measure, draws) for rule in rules]).T
    found = []
    for x, y in zip(speeds, values, strict=True):
        order = x.argsort(kind="stable")
        found.append(np.interp(LEVELS, x[order], y[order]))
    return np.array(found)


def qualities(looked: Looked, rule: Rule, measure: str, draws: np.ndarray) -> np.ndarray:
    """Of a rule, the mean of the sets ``[draws]``."""
    texts, outcomes = looked.texts[measure], looked.outcomes(rule)
    scores = []
    for indices in texts.by_set(looked.everything).values():
        rows = np.array([texts.of_text(index, outcomes[index].tokens) for index in indices])
        scores.append([texts.score_of(sums) for sums in draws[:, indices] @ rows])
    return np.array(scores).mean(0)


def estimate(values: np.ndarray) -> list[float]:
    """The value, and the ends of the interval; the first is of the texts as they are."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return [float(values[0]), float(low), float(high)]
