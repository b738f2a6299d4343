"""BiLD beside other engines on the same checkpoints and texts, batch 1, text by text in turn.

    python benchmarks/peers.py --data A/test.jsonl.gz B/test.jsonl.gz --dev A/dev.jsonl.gz B/dev.jsonl.gz [--limit 300]

First tunes transformers' assisted generation on the dev sets (all settings of a grid in turn, the fastest is taken;
its text is the large model's at every setting), then evaluates all methods on the test sets. A peer that needs an
environment of its own gets one on first use; one that cannot run is named with the reason. --out gets what `bild
evaluate` writes (a killed run goes on) and assisted.json; the figures go to benchmarks/results/peers.json. The last
line is JSON: seconds of each peer at its fastest setting / seconds of our fastest `bild` row among those that lose
at most 0.3 BLEU to the large model on every set.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from peers_report import keep, plot, render

from bild.data.examples import distinct_names
from bild.errors import BildError
from bild.evaluation import Data, Example, Setup, Summary, evaluate, load_methods, parse_methods, read_examples
from bild.evaluation.figures import ALL, summarise
from bild.evaluation.folder import OUTPUTS
from bild.evaluation.journal import Journal
from bild.evaluation.measure import measure
from bild.evaluation.method import MethodSpec
from bild.evaluation.table import print_summary
from docs import PERFORMANCE, replace_section

MAX_BLEU_LOSS = 0.3
LARGE = "large"
POLICIES = ",".join([LARGE, "exact", "bild", "bild:runtime=static", "bild:runtime=static:dtype=int8"])
PEERS = ",".join(
    [
        "transformers-greedy:dtype=float32",
        "transformers-greedy:dtype=bfloat16",
        "transformers-assisted:dtype=float32",
        "transformers-assisted:dtype=bfloat16",
        "ctranslate2:dtype=float32",
        "ctranslate2:dtype=int8",
        "ctranslate2:dtype=bfloat16",
        "onnxruntime:dtype=float32",
        "onnxruntime:dtype=int8",
        "openvino:dtype=float32",
        "openvino:dtype=bfloat16",
        "openvino:dtype=int8",
    ]
)
GRID: dict[str, list[str]] = {
    "dtype": ["float32", "bfloat16"],
    "num_assistant_tokens": ["3", "5", "10", "20"],
    "assistant_confidence_threshold": ["0", "0.4", "0.6"],
    "schedule": ["constant", "heuristic"],
}
WARM_UP = 3
"""Texts before tuning; of 48 settings that share two networks, each is soon warm."""


def main() -> None:
    """Tune, evaluate, print."""
    args = parse_arguments()
    setup = Setup(pair=args.pair, max_new_tokens=args.max_new_tokens)
    args.out.mkdir(parents=True, exist_ok=True)
    dev, test = read_sets(args.dev, args.dev_limit), read_sets(args.data, args.limit)
    names = [args.policies, args.peers]
    if args.dev:
        names.append(tuned_assisted(setup, dev, args.out / "assisted.json"))
    specs = parse_methods(",".join(dict.fromkeys(",".join(names).split(","))))
    roster = load_methods(specs, setup)
    for name, why in roster.failed.items():
        say(f"{name}: not run: {why}")
    methods = [method.name for method in roster.methods]
    run = {"baseline": LARGE, "settings": setup.describe(), "fresh": args.fresh, "progress": tell}
    summary = evaluate(roster.methods, test, out=args.out, failed=roster.failed, **run)
    print_summary(summary)
    line = compare(summary, test, Journal(methods, args.out / OUTPUTS))
    kept = keep(summary, line)
    if args.docs:
        plot(kept, PERFORMANCE.with_name("peers.svg"))
        replace_section(PERFORMANCE, "peers", render(kept, "peers.svg"))
    print(json.dumps(line))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="test sets, as bild evaluate --data")
    parser.add_argument("--dev", nargs="*", default=[], help="sets to tune assisted generation on; none: no tuning")
    parser.add_argument("--limit", type=int, default=300, help="first examples of each test set")
    parser.add_argument("--dev-limit", type=int, default=10, help="first examples of each dev set")
    parser.add_argument("--pair", default=None, help="default: the bundled pair")
    parser.add_argument("--policies", default=POLICIES, help="our methods, as bild evaluate --methods; with large")
    parser.add_argument("--peers", default=PEERS, help="the others, in the same syntax")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/peers"))
    parser.add_argument("--docs", action="store_true", help="rewrite the section of docs/performance.md and its plot")
    parser.add_argument("--fresh", action="store_true", help="delete an earlier run in --out")
    return parser.parse_args()


def read_sets(paths: Sequence[str], limit: int) -> dict[str, list[Example]]:
    """The sets by name."""
    return {
        name: read_examples(path, limit=limit).examples for name, path in zip(distinct_names(paths), paths, strict=True)
    }


def tuned_assisted(setup: Setup, sets: Mapping[str, list[Example]], file: Path) -> str:
    """The fastest setting of assisted generation on these sets; kept in a file, as long as nothing changes."""
    asked = {
        "grid": GRID,
        "data": {name: Data(name, examples).digest for name, examples in sets.items()},
        "setup": setup.describe(),
        "threads": torch.get_num_threads(),
        "transformers": transformers.__version__,
    }
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if known.get("asked") != asked:
        seconds = assisted_seconds(setup, sets)
        known = {"asked": asked, "chosen": min(seconds, key=seconds.__getitem__), "seconds": seconds}
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    say(f"assisted generation, tuned on dev: {known['chosen']}")
    return str(known["chosen"])


def assisted_seconds(setup: Setup, sets: Mapping[str, list[Example]]) -> dict[str, float]:
    """Seconds over all texts of each setting, measured in turn."""
    settings = [":".join(f"{key}={value}" for key, value in zip(GRID, values, strict=True))
                for values in product(*GRID.values())]  # fmt: skip
    roster = load_methods(parse_methods(",".join(f"transformers-assisted:{each}" for each in settings)), setup)
    for name, why in roster.failed.items():
        say(f"{name}: not run: {why}")
    journal = Journal([method.name for method in roster.methods])
    measure(roster.methods, sets, journal, warm_up=WARM_UP, progress=tell)
    roster.close()
    failed = {
        record.method: record.error for row in journal.records.values() for record in row.values() if record.error
    }
    if len(failed) == len(journal.methods):
        raise SystemExit(f"assisted generation cannot be tuned: {next(iter(failed.values()))}")
    return {name: sum(row[name].total_s for row in journal.records.values())
            for name in journal.methods if name not in failed}  # fmt: skip


def compare(summary: Summary, sets: Mapping[str, list[Example]], journal: Journal) -> dict[str, Any]:
    """Each peer at its fastest setting against our best row."""
    figures = summary.sets[next(iter(sets)) if len(sets) == 1 else ALL].methods
    ours = best_row(summary)
    line: dict[str, Any] = {"speedup": {}, "bleu": None, "bleu_large": figures[LARGE].quality["bleu"].value}
    line |= {"ours": ours, "failed": summary.failed}
    if ours is None:
        say(f"no bild row is within {MAX_BLEU_LOSS} BLEU of the large model on every set")
        return line
    against = summarise(journal, sets, baseline=ours)
    speedups = against.sets[next(iter(sets)) if len(sets) == 1 else ALL].methods
    best = fastest_settings({name: each.total_s for name, each in figures.items()})
    line["bleu"] = figures[ours].quality["bleu"].value
    for peer, name in best.items():
        slower = speedups[name].speedup
        line["speedup"][peer] = round(1 / slower.value, 3)
        line.setdefault("interval", {})[peer] = [round(1 / slower.high, 3), round(1 / slower.low, 3)]
    return line | {"settings": best, "ms_per_text": {name: mean_ms(figures[name].total_s, sets) for name in figures}}


def best_row(summary: Summary) -> str | None:
    """Our fastest ``bild`` row that loses at most 0.3 BLEU on every set, None if none does."""
    rows = [name for name in summary.methods if MethodSpec.parse(name).name == "bild"]
    kept = [
        name
        for name in rows
        if all(
            each.methods[name].quality["bleu"].value >= each.methods[LARGE].quality["bleu"].value - MAX_BLEU_LOSS
            for each in summary.sets.values()
        )
    ]
    last = list(summary.sets.values())[-1].methods
    return min(kept, key=lambda name: last[name].total_s, default=None)


def fastest_settings(seconds: Mapping[str, float]) -> dict[str, str]:
    """Each peer's fastest row by the peer's name; CTranslate2's dtypes count as peers of their own."""
    best: dict[str, str] = {}
    for name in sorted(seconds, key=seconds.__getitem__):
        spec = MethodSpec.parse(name)
        if spec.name in ("bild", "exact", "small"):
            continue
        of_its_own = spec.name == "ctranslate2" and "dtype" in spec.options
        best.setdefault(f"{spec.name}-{spec.options['dtype']}" if of_its_own else spec.name, name)
    return best


def mean_ms(seconds: float, sets: Mapping[str, list[Example]]) -> float:
    """Milliseconds a text."""
    return round(1e3 * seconds / sum(map(len, sets.values())), 2)


def tell(done: int, total: int) -> None:
    """A line each tenth."""
    if 10 * done // total > 10 * (done - 1) // total:
        say(f"{done} of {total} texts")


def say(line: str) -> None:
    """To stderr: stdout has the tables and the result."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
