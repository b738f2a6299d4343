"""Would a calibrated confidence hand over better than a threshold on the small model's probability, or a window?

    python benchmarks/calibrated.py --dev A/dev.jsonl.gz B/dev.jsonl.gz --test A/test.jsonl.gz B/test.jsonl.gz

What both models say is read once (as `bild tune` does it). On dev, weights are fitted that say how probable it is that
the large model keeps a token, and families of rules are swept; what each family has chosen on dev, at each latency, is
looked up on test. Latency comes from counts and prices. A killed run goes on; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hand_over_rules import EVERY, FEATURES, PLACE, ROW, Rule, Score, Seen, fit, kept, ranking
from hand_over_texts import (
    LEVELS,
    MEASURES,
    Looked,
    Point,
    curve,
    estimate,
    latencies,
    look,
    mean,
    own_tokens,
    resamples,
    watch,
)  # fmt: skip
from machine import describe
from peers import read_sets
from peers_report import RESULTS

from bild import BigLittleDecoder
from bild.data import claim
from bild.data.settings import describe_pair
from bild.errors import BildError
from bild.generation.pair import Pair, bundled_pair
from bild.reproduction.inputs import digests
from bild.tuning.costs import FEATURES as COSTS
from bild.tuning.search import spaced

PRICES = (0.97, 1.1, 0.28, 0.86, 0.09)
"""Milliseconds of a text, a text of the large model, a small step, a large step, a token read: docs/performance.md."""
EXACT = -1.0
ROLLBACK = (1.0, 2.0, 3.0, 4.0, 6.0)
ENDS = (-1.0, 0.6)
WINDOWS = (3, 5, 10, 30)
TODAY = (10, 30)
FIXED = (1, 2, 3, 4, 5, 6, 7, 8, 10, 15)
QUANTILES = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7)
FRONT = 24
"""Rules of a family that are looked up on test, at most, for each measure."""
P_ALONE = (0, 1)
USED = {"probability": P_ALONE, "and the draft": PLACE, "and the rounds before": ROW, "and all": EVERY}
"""What weights are fitted to."""
USUAL = "threshold, as tuned today"


@dataclass(frozen=True)
class Family:
    """Rules of one kind."""

    score: Score
    keeps: bool = False
    used: tuple[int, ...] = ()
    windows: tuple[int, ...] = WINDOWS


FAMILIES = {
    "fixed window": Family("nothing", windows=FIXED),
    USUAL: Family("probability", windows=TODAY),
    "threshold and window": Family("probability"),
    "threshold, doubtful kept": Family("probability", keeps=True),
    "product": Family("product"),
    "product, doubtful kept": Family("product", keeps=True),
    "calibrated by row": Family("kept", used=ROW),
    "calibrated by row, kept": Family("kept", keeps=True, used=ROW),
    "calibrated by place": Family("kept", used=PLACE),
    "calibrated by place, kept": Family("kept", keeps=True, used=PLACE),
    "calibrated": Family("kept", used=EVERY),
    "calibrated, kept": Family("kept", keeps=True, used=EVERY),
    "product of calibrated p, kept": Family("all kept", keeps=True, used=P_ALONE),
    "calibrated product, kept": Family("all kept", keeps=True, used=EVERY),
    "truth": Family("truth"),
}


@dataclass
class Fits:
    """Weights, by rollback threshold and features used, and the tokens that they are from."""

    seen: dict[float, Seen] = field(default_factory=dict)
    weights: dict[tuple[float, tuple[int, ...]], tuple[float, ...]] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, dev: Looked, test: Looked) -> Fits:
        """Fitted on dev; how they rank tokens is measured on test."""
        fits = cls()
        for rollback in (EXACT, *ROLLBACK):
            fits.seen[rollback], other = watch(dev, rollback), watch(test, rollback)
            for name, used in USED.items():
                weights = fits.weights[rollback, used] = fit(fits.seen[rollback], used)
                area, nats = ranking(other, weights)
                said = {"rollback": rollback, "of": name, "kept": mean(other.kept), "auc": area, "nats": nats}
                fits.figures.append({**said, "weights": dict(zip(FEATURES, weights, strict=True))})
                print(json.dumps(said), flush=True)
        return fits

    def thresholds(self, family: Family, rollback: float) -> list[float]:
        """Quantiles of a family's score over the tokens seen."""
        if family.score in ("nothing", "truth"):
            # Below every probability; between the two things that may be true.
            return [0.0 if family.score == "nothing" else 0.5]
        table = np.array(self.seen[rollback].values)
        numbers, before = 1 / (1 + np.exp(-table[:, 1])), np.exp(-table[:, 3])
        if family.used:
            numbers = np.array([kept(self.weights[rollback, family.used], row) for row in table])
        if family.score in ("product", "all kept"):
            numbers = numbers * before
        return [float(each) for each in np.quantile(numbers, QUANTILES)]

    def rules(self, family: Family) -> list[Rule]:
        """All rules of a family."""
        return [
            Rule(family.score, threshold, window, rollback, end, family.keeps,
                 self.weights[rollback, family.used] if family.used else ())
            for rollback in (EXACT, *ROLLBACK)
            for threshold in self.thresholds(family, rollback)
            for window in family.windows
            for end in ((math.inf,) if rollback == EXACT else ENDS)
        ]  # fmt: skip


def main() -> None:
    """Read, fit, sweep on dev, look up on test."""
    args = parse_arguments()
    pair = bundled_pair() if args.pair is None else args.pair
    chosen = Pair.load(pair)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {"dev": read_sets(args.dev, args.texts), "test": read_sets(args.test, args.texts)}
    data = {name: digests(sets) for name, sets in parts.items()}
    asked = {**describe_pair(chosen.large, chosen.small), "data": data, "max_new_tokens": args.max_new_tokens}
    claim(args.out / "run.json", asked, args.out / "traces-dev.jsonl")
    decoder = BigLittleDecoder.from_pretrained(pair, runtime="eager", dtype="float32")
    dev, test = (
        look(decoder, sets, args.out / f"traces-{part}.jsonl", args.prices, args.max_new_tokens)
        for part, sets in parts.items()
    )
    fits = Fits.of(dev, test)
    asked_for = FAMILIES if args.only is None else dict.fromkeys([USUAL, *args.only])
    fronts = {name: sweep(name, fits.rules(FAMILIES[name]), dev, test) for name in asked_for}
    compared = {name: compare(front, fronts[USUAL], test) for name, front in fronts.items()}
    result = {
        "machine": describe(),
        "texts": args.texts,
        "prices": dict(zip(COSTS, args.prices, strict=True)),
        "large": {name: mean(texts.quality(own_tokens(test)).values()) for name, texts in test.texts.items()},
        "fits": fits.figures,
        "families": compared,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"calibrated-{args.name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: each["summary"] for name, each in compared.items()}))


@dataclass(frozen=True)
class Chosen:
    """What a family has chosen on dev."""

    lossless: Rule
    """The fastest that loses nothing."""
    fronts: dict[str, list[Rule]]
    """By measure: what nothing beats in both latency and quality, fastest first."""


def sweep(name: str, rules: Sequence[Rule], dev: Looked, test: Looked) -> Chosen:
    """Look a family up on dev, and what it chooses there on test."""
    rules = list(dict.fromkeys(rules))
    dev.run(rules)
    points = sorted((dev.point(rule) for rule in rules), key=lambda point: point.latency)
    for rule in rules:
        # Only their figures are needed from here on.
        del dev.search.simulator.outcomes[rule]
    lossless = next(point.rule for point in points if point.rule.lossless)
    fronts = {measure: spaced(front(points, measure), FRONT) for measure in MEASURES}
    test.run([lossless, *(rule for each in fronts.values() for rule in each)])
    print(f"{name}: {len(rules)} rules", flush=True)
    return Chosen(lossless, fronts)


def front(points: Sequence[Point], measure: str) -> list[Rule]:
    """Rules that nothing faster beats, of points sorted by latency."""
    rules, best = [], -math.inf
    for point in points:
        if point.quality[measure] > best:
            best = point.quality[measure]
            rules.append(point.rule)
    return rules


def compare(chosen: Chosen, usual: Chosen, test: Looked) -> dict[str, Any]:
    """A family's figures on test beside those of the usual one, with 95 % paired bootstrap intervals."""
    draws, levels = resamples(test), list(LEVELS)
    latency = latencies(test, chosen.lossless, draws)
    gain = latencies(test, usual.lossless, draws) - latency
    summary: dict[str, Any] = {"lossless": {"latency": float(latency[0]), "saved": estimate(gain)}}
    figures: dict[str, Any] = {"lossless": test.point(chosen.lossless).to_dict()}
    for measure in MEASURES:
        own, other = (curve(test, each.fronts[measure], measure, draws) for each in (chosen, usual))
        summary[measure] = {
            "at": {f"{level:g}": float(own[0, i]) for i, level in enumerate(levels)},
            "more": {f"{level:g}": estimate(own[:, i] - other[:, i]) for i, level in enumerate(levels)},
            "mean": float(own[0].mean()),
            "mean_more": estimate((own - other).mean(1)),
        }
        figures[measure] = [test.point(rule).to_dict() for rule in chosen.fronts[measure]]
    return {"summary": summary, "test": figures}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", nargs="+", required=True, help="sets that weights and rules are chosen on")
    parser.add_argument("--test", nargs="+", required=True, help="sets that what was chosen is looked up on")
    parser.add_argument("--pair", default=None, help="default: the bundled pair")
    parser.add_argument("--name", default="de-en", help="of the pair, in the file of results")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, help="families; default: all")
    parser.add_argument("--texts", type=int, default=400, help="of each set")
    parser.add_argument("--prices", type=float, nargs=5, default=PRICES, help="milliseconds, as bild tune measures")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/calibrated"))
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
