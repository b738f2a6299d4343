"""Every policy on the same texts: quality, speed, and what the two models did, batch 1, text by text in turn.

    python benchmarks/policies.py --data A/test.jsonl.gz B/test.jsonl.gz [--limit 300] [--docs]

Greedy policies are compared with the large model's greedy text, sampled ones (nucleus sampling, p = 0.8, as in section
7.4 of the paper) with what the large model draws with the same seed. --out gets what `bild evaluate` writes (a killed
run goes on), the figures go to benchmarks/results/policies.json. The last line is JSON: BLEU, speedup, rates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from machine import describe
from peers import read_sets, tell
from peers_report import RESULTS, heading, plain

from bild.errors import BildError
from bild.evaluation import Setup, Summary, evaluate, load_methods, parse_methods
from bild.evaluation.figures import ALL
from bild.evaluation.table import print_summary
from docs import DOCS, replace_section

GREEDY = (
    "large",
    "small",
    "exact",
    *(f"speculative_sampling:window={window}" for window in (1, 2, 3, 5, 8)),
    "ensemble:weight=0.5:window=3",
    "bild",
    "bild:fallback_threshold=0.5:rollback_threshold=2:verify_end=no",
    "bild:metric=js:rollback_threshold=0.5",
    "typical",
    "adaptive",
    "adaptive:verify_end=yes",
    "no_rollback:fallback_threshold=0.5",
    "no_fallback:window=3",
)
DRAW = ":top_p=0.8:seed=1"
SAMPLED = ("large", "exact", "speculative_sampling:window=2", "speculative_sampling:window=3", "bild", "typical")
COLUMNS = ("large_share", "acceptance_rate", "mean_acceptance_length", "rollback_rate", "same_tokens")


def main() -> None:
    """Evaluate, print, keep."""
    args = parse_arguments()
    results: dict[str, Any] = {"machine": describe(), "tables": {}}
    for table, names in (("greedy", GREEDY), ("sampled", [name + DRAW for name in SAMPLED])):
        summary = run(args, table, names)
        results["texts"] = {name: of_set.num_examples for name, of_set in summary.sets.items()}
        results["tables"][table] = figures(summary)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "policies.json"
    file.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    if args.docs:
        replace_section(DOCS / "policies.md", "policies", render(results))
    print(json.dumps({table: {name: line(sets) for name, sets in rows.items()}
                      for table, rows in results["tables"].items()}))  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="test sets, as bild evaluate --data")
    parser.add_argument("--limit", type=int, default=300, help="first examples of each set")
    parser.add_argument("--pair", default=None, help="default: the bundled pair")
    parser.add_argument("--runtime", default="static")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/policies"))
    parser.add_argument("--docs", action="store_true", help="rewrite the section of docs/policies.md")
    parser.add_argument("--fresh", action="store_true", help="delete an earlier run in --out")
    return parser.parse_args()


def run(args: argparse.Namespace, table: str, names: Any) -> Summary:
    """All methods of a table, the first of which is the baseline."""
    setup = Setup(pair=args.pair, runtime=args.runtime, max_new_tokens=args.max_new_tokens)
    methods = load_methods(parse_methods(",".join(names)), setup).methods
    sets = read_sets(args.data, args.limit)
    how = {"baseline": names[0], "settings": setup.describe(), "fresh": args.fresh, "progress": tell}
    summary = evaluate(methods, sets, out=args.out / table, **how)
    print_summary(summary)
    return summary


def figures(summary: Summary) -> dict[str, Any]:
    """What is kept of each method, by set."""
    return {
        method: {
            name: {
                "bleu": plain(of_set.methods[method].quality["bleu"]),
                "bleu_difference": plain(of_set.methods[method].difference["bleu"]),
                "speedup": plain(of_set.methods[method].speedup),
                **{column: getattr(of_set.methods[method], column) for column in COLUMNS},
            }
            for name, of_set in summary.sets.items()
        }
        for method in summary.methods
    }


def whole(sets: dict[str, Any]) -> dict[str, Any]:
    """The figures of all sets together."""
    return sets.get(ALL) or next(iter(sets.values()))


def line(sets: dict[str, Any]) -> dict[str, Any]:
    """A method in the last line printed."""
    row = whole(sets)
    return {"bleu": row["bleu"]["value"], "speedup": row["speedup"]["value"], **{key: row[key] for key in COLUMNS}}


def render(results: dict[str, Any]) -> str:
    """The section of docs/policies.md."""
    lines = [
        heading(results) + "; batch 1, static runtime, all policies in turn on every text. Speedup: against the large "
        "model alone in the same runtime. In brackets the 95 % paired bootstrap interval; BLEU differences are to the "
        "first row.",
    ]
    for table, rows in results["tables"].items():
        sets = [name for name in results["texts"] if name != ALL]
        lines += ["", f"**{table.capitalize()}**", ""]
        lines += ["| policy | " + " | ".join(f"BLEU {name} (difference)" for name in sets) + " | speedup | large share "
                  "| accepted | acceptance length | rollbacks | same text |"]  # fmt: skip
        lines += ["|---" * (7 + len(sets)) + "|"]
        for method, by_set in sorted(rows.items(), key=lambda row: whole(row[1])["speedup"]["value"]):
            lines.append("| " + " | ".join([f"`{method}`", *cells(by_set, sets)]) + " |")
    return "\n".join(lines)


def cells(by_set: dict[str, Any], sets: list[str]) -> list[str]:
    """A row of the table behind the method's name."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    row = whole(by_set)
    length = row["mean_acceptance_length"]
    bleu = "{bleu[value]:.2f} ({bleu_difference[value]:+.2f} "
    bleu += "[{bleu_difference[low]:+.2f}, {bleu_difference[high]:+.2f}])"
    return [
        *(bleu.format(**by_set[name]) for name in sets),
        "{value:.2f} [{low:.2f}, {high:.2f}]".format(**row["speedup"]),
        percent(row["large_share"]),
        percent(row["acceptance_rate"]),
        "–" if length is None else f"{length:.2f}",
        percent(row["rollback_rate"]),
        percent(row["same_tokens"]),
    ]


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
