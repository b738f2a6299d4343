"""Is a budget kept on texts that nobody has seen as often as `bild tune --confidence` promises, and at which speed?

    python benchmarks/confidence.py --data A/dev.jsonl.gz B/dev.jsonl.gz [--pair PAIR] [--splits 200] [--seen 0.5]

What both models say is read once (as `bild tune` does it). Then, split by split, a random share of each set's texts
is tuned on as `bild tune` would, half proposing and half judging, and the policies chosen with the confidence and
by the point estimate are looked up on the rest. Speeds are predicted by the cost model. A killed run goes on; the
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

from peers import read_sets

from bild import BigLittleDecoder, Policy
from bild.data import claim
from bild.data.settings import describe_pair
from bild.errors import BildError
from bild.generation.pair import Pair, bundled_pair
from bild.reproduction.inputs import digests
from bild.tuning.bench import Bench
from bild.tuning.grid import default_grid, with_exact
from bild.tuning.judge import Judge, halves
from bild.tuning.search import Search
from bild.tuning.tune import DEFAULT_BUDGET, DEFAULT_CONFIDENCE


@dataclass(frozen=True)
class Split:
    """What two ways of choosing come to on texts that neither has seen."""

    kept: bool
    lossless: bool
    speedup: float
    kept_by_points: bool
    speedup_by_points: float


def main() -> None:
    """Read, split, tune, look up."""
    args = parse_arguments()
    pair = bundled_pair() if args.pair is None else args.pair
    chosen, sets = Pair.load(pair), read_sets(args.data, None)
    options = {"max_new_tokens": args.max_new_tokens}
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {**describe_pair(chosen.large, chosen.small), "data": digests(sets), "runtime": args.runtime, **options}
    claim(args.out / "run.json", asked, args.out / "traces.jsonl")
    decoder = BigLittleDecoder.from_pretrained(pair, runtime=args.runtime)
    bench = Bench(decoder, sets, options=options, say=lambda line: print(line, flush=True)).usable()
    costs = bench.calibrate(args.out / "calibration.jsonl")
    search = bench.search(args.out / "traces.jsonl", "bleu", costs, args.budget)
    points, _ = search.run(with_exact(default_grid()))
    rng, splits = Random(args.seed), []
    for number in range(args.splits):
        splits.append(one_split(search, [point.policy for point in points], args, rng))
        if number % 10 == 9:
            print(f"{number + 1} splits: {json.dumps(summary(splits))}", flush=True)
    print(json.dumps({"confidence": args.confidence, "budget": args.budget, "seen": args.seen, **summary(splits)}))


def one_split(search: Search, policies: list[Policy], args: argparse.Namespace, rng: Random) -> Split:
    """Tune on a random share of each set, look up on the rest."""
    seen: dict[str, list[int]] = {}
    rest: list[int] = []
    for name, indices in search.texts.by_set(range(len(search.texts.examples))).items():
        drawn = rng.sample(indices, len(indices))
        seen[name], others = drawn[: int(args.seen * len(drawn))], drawn[int(args.seen * len(drawn)) :]
        rest += others
    propose, texts = halves(seen)
    judge = Judge(search, args.budget, args.confidence)
    judged = judge.judge(judge.candidates(search.points(policies, propose), propose), texts)
    chosen = [each.policy for each in judged if each.kept][-1]
    by_points = search.within_budget(search.points(policies, [*propose, *texts]))[0].policy
    later = {point.policy: point for point in search.points([chosen, by_points], rest)}
    own, other = later[chosen], later[by_points]
    return Split(
        kept=chosen.lossless or own.worst_loss <= args.budget,
        lossless=chosen.lossless,
        speedup=own.speedup,
        kept_by_points=other.worst_loss <= args.budget,
        speedup_by_points=other.speedup,
    )


def summary(splits: list[Split]) -> dict[str, float]:
    """Shares of the splits, and middle speeds."""
    count = len(splits)
    return {
        "splits": count,
        "kept": sum(split.kept for split in splits) / count,
        "lossless": sum(split.lossless for split in splits) / count,
        "speedup": round(median(split.speedup for split in splits), 3),
        "kept_by_points": sum(split.kept_by_points for split in splits) / count,
        "speedup_by_points": round(median(split.speedup_by_points for split in splits), 3),
        "of_its_speed": round(median(split.speedup / split.speedup_by_points for split in splits), 3),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="dev sets, as bild tune --data")
    parser.add_argument("--pair", default=None, help="default: the bundled pair")
    parser.add_argument("--budget", type=float, default=DEFAULT_BUDGET)
    parser.add_argument("--confidence", type=float, default=DEFAULT_CONFIDENCE)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seen", type=float, default=0.5, help="share of the texts that is tuned on, between 0 and 1")
    parser.add_argument("--seed", type=int, default=0, help="of the splits")
    parser.add_argument("--runtime", default="static")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/confidence"))
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
