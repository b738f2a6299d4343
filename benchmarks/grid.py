"""What `bild tune` chose beside every point of an exhaustive grid: is anything within the budget faster?

    python benchmarks/grid.py --data A/dev.jsonl.gz B/dev.jsonl.gz [--pair PAIR] [--texts 150]

The grid is the paper's ranges of both thresholds with three rules for ends (bild.reproduction.grids). Each point's
quality is looked up on all texts (token for token that of a run); every point that keeps the budget then decodes
the first --texts of each set for real, in turn with the pair's own policy and the large model alone. A killed run
goes on. The figures go to benchmarks/results/grid-PAIR.json; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

from machine import describe
from peers import read_sets
from peers_report import RESULTS, plain

from bild import BigLittleDecoder, Policy
from bild.data import claim
from bild.data.settings import describe_pair
from bild.errors import BildError
from bild.evaluation.figures import ALL, summarise
from bild.generation.pair import Pair, bundled_pair
from bild.reproduction.grids import FALLBACK, ROLLBACK, VERIFY_END
from bild.reproduction.inputs import digests
from bild.tuning.bench import LARGE, Bench
from bild.tuning.grid import method_name
from bild.tuning.search import Point
from bild.tuning.tune import DEFAULT_BUDGET

TUNED = "tuned"


def main() -> None:
    """Look up, run, compare, keep."""
    args = parse_arguments()
    pair = bundled_pair() if args.pair is None else args.pair
    decoder = BigLittleDecoder.from_pretrained(pair, runtime=args.runtime)
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = Pair.load(pair)
    sets, options = read_sets(args.data, None), {"max_new_tokens": args.max_new_tokens}
    asked = {**describe_pair(chosen.large, chosen.small), "data": digests(sets), "runtime": args.runtime, **options}
    claim(args.out / "run.json", asked, args.out / "runs.jsonl")
    bench = Bench(decoder, sets, options=options, say=lambda line: print(line, flush=True))
    costs = bench.calibrate(args.out / "calibration.jsonl")
    search = bench.search(args.out / "traces.jsonl", args.metric, costs, args.budget)
    everything = range(len(search.texts.examples))
    points = search.points(grid(), everything)
    [own] = search.points([decoder.policy], everything)
    kept = search.within_budget(points)
    print(f"{len(kept)} of {len(points)} points lose at most {args.budget:g} on each set", flush=True)

    few = bench.first(args.texts)
    policies = {
        LARGE: Policy.large(),
        TUNED: decoder.policy,
        **{method_name(each.policy): each.policy for each in kept},
    }
    journal = few.run([few.method(*each) for each in policies.items()], args.out / "runs.jsonl")
    alone = whole(summarise(journal, few.sets, baseline=LARGE).sets)
    seconds = {name: alone.methods[name].total_s for name in policies if name not in (LARGE, TUNED)}
    best = min(seconds, key=lambda name: seconds[name])
    ratio = whole(summarise(journal, few.sets, baseline=best).sets).methods[TUNED].speedup
    results: dict[str, Any] = {
        "machine": describe(),
        "budget": args.budget,
        "texts": {"quality": len(everything), "speed": args.texts * len(few.sets)},
        "tuned": {**entry(own), "speedup": plain(alone.methods[TUNED].speedup)},
        "best": {"method": best, "speedup": plain(alone.methods[best].speedup)},
        "tuned_against_best": plain(ratio),
        "points": [
            {**entry(point), "speedup": plain(alone.methods[method_name(point.policy)].speedup)
             if method_name(point.policy) in alone.methods else None}
            for point in points
        ],
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"grid-{args.name}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: results[key] for key in ("tuned", "best", "tuned_against_best")}))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="dev sets, as bild evaluate --data")
    parser.add_argument("--pair", default=None, help="default: the bundled pair")
    parser.add_argument("--name", default="de-en", help="of the pair, in the file of results")
    parser.add_argument("--texts", type=int, default=150, help="of each set, that are decoded under the clock")
    parser.add_argument("--budget", type=float, default=DEFAULT_BUDGET)
    parser.add_argument("--metric", default="bleu")
    parser.add_argument("--runtime", default="static")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/grid"))
    return parser.parse_args()


def grid() -> list[Policy]:
    """Every pair of thresholds with every rule for ends."""
    return [
        Policy.bild(fallback_threshold=low, rollback_threshold=far, verify_end=end)
        for low, far, end in product(FALLBACK, ROLLBACK, VERIFY_END)
    ]


def entry(point: Point) -> dict[str, Any]:
    """A point as it is kept."""
    return {"method": method_name(point.policy), "loss": dict(point.loss), "predicted_speedup": point.speedup}


def whole(sets: Any) -> Any:
    """The figures of all sets together."""
    return sets.get(ALL) or next(iter(sets.values()))


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
