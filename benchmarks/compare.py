"""One page that compares: drafters and acceptance rules, on the bundled pair, an unaligned one and a chat model.

    python benchmarks/compare.py --data test.jsonl.gz [--unaligned FOLDER] [--chat LARGE [--chat-small SMALL]]
        [--limit 100] [--docs]

All methods of a pair decode each text in turn, batch 1, warmed up: speed, BLEU where there are references, tokens a
large pass, whose text it is. --docs rewrites the measured part of docs/related/comparison.md; what to use when stands
above it and is written by hand. With 100 texts and compiled graphs this takes less than six minutes on two cores. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from copying import chat_sets
from machine import describe

from bild import BigLittleDecoder
from bild.data import Example, read_examples
from bild.errors import BildError
from bild.evaluation import evaluate
from bild.evaluation.own import PolicyMethod
from bild.training import count_ngrams
from docs import DOCS, replace_section

PAGE = DOCS / "related" / "comparison.md"
RESULTS = Path(__file__).resolve().parent / "results" / "compare.json"
COUNTED = 40
"""Texts behind those that are decoded, in whose translations the n-gram model counts."""
CHAIN = "n-grams → small → large"

Entry = tuple[str, str, str | None]
"""Who drafts, the policy, and the drafter where it is not the small model."""
ALONE: list[Entry] = [("large alone", "large", None), ("small alone", "small", None)]
PAIR: list[Entry] = [
    ("small", "exact", None),
    ("small", "speculative_sampling:window=3", None),
    ("small", "bild", None),
    ("small", "bild:metric=js:rollback_threshold=0.5", None),
    ("small", "typical", None),
    ("small", "adaptive", None),
    ("small", "adasd", None),
    ("n-grams", "exact", "ngram"),
    ("n-grams, else small", "exact", "first:ngram,small"),
    ("n-grams, else small", "bild", "first:ngram,small"),
    ("bandit of both, by speed", "exact", "bandit:reward=speed:ngram,small"),
    ("backoff", "exact:fallback_threshold=0.2", "backoff:file={counts}"),
]
CHAINS: list[Entry] = [(CHAIN, "exact", "ngram"), (CHAIN, "pyramid", "ngram")]
WITHOUT_SMALL: list[Entry] = [("n-grams", "exact", "ngram"), ("n-grams", "typical", "ngram")]


def main() -> None:
    """Decode, print, keep."""
    args = parse_arguments()
    examples = list(read_examples(args.data, limit=args.limit + COUNTED).examples)
    texts, others = examples[: args.limit], examples[args.limit :]
    results: dict[str, Any] = {"machine": describe(), "pairs": {}}
    for name, place in (("bundled pair", None), ("unaligned pair", args.unaligned)):
        if name == "bundled pair" or place is not None:
            pair = BigLittleDecoder.from_pretrained(place, runtime=args.runtime)
            results["pairs"][name] = of_pair(pair, texts, [each.source for each in others], args)
    if args.chat is not None:
        for kind, chosen in chat_sets(texts, args.chat_limit).items():
            results["pairs"][f"chat model, {kind}"] = of_chat(chosen, args)
    RESULTS.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    page = render(results)
    print(page)
    if args.docs:
        replace_section(PAGE, "comparison", page)
    print(json.dumps(results["pairs"]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="test set, as bild evaluate --data")
    parser.add_argument("--limit", type=int, default=100, help="first examples")
    parser.add_argument("--unaligned", default=None, help="folder of a pair whose small model was not aligned")
    parser.add_argument("--chat", default=None, help="a chat model")
    parser.add_argument("--chat-small", default=None, help="a small one beside it")
    parser.add_argument("--chat-limit", type=int, default=8, help="texts of each kind for it")
    parser.add_argument("--runtime", default="static")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--docs", action="store_true", help="rewrite the section of docs/related/comparison.md")
    return parser.parse_args()


def of_pair(
    pair: BigLittleDecoder, texts: Sequence[Example], others: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    """Every method of a pair, those with the small model in between included."""
    own = {"tokenizer": pair.tokenizer, "small_tokenizer": pair.tokenizer, "policy": pair.policy}
    chain = BigLittleDecoder(
        pair.large.network, pair.small.network, middle="small", drafter="ngram", runtime=args.runtime, **own
    )
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        count_ngrams(pair, others).save(counts)
        methods = [method(pair, entry, args, counts) for entry in [*ALONE, *PAIR]]
        methods += [method(chain, entry, args, counts) for entry in CHAINS]
        return figures(methods, [*ALONE, *PAIR, *CHAINS], texts, args)


def of_chat(texts: Sequence[Example], args: argparse.Namespace) -> dict[str, Any]:
    """A chat model with what it needs no small model for, and with a small one where that is named."""
    where = {"large": args.chat, "small": args.chat_small, "runtime": args.runtime}
    pair = BigLittleDecoder.from_pretrained(drafter=None if args.chat_small else "ngram", **where)
    entries = [*ALONE[:1], *WITHOUT_SMALL] if args.chat_small is None else [*ALONE, *PAIR[:3], *PAIR[7:11]]
    return figures([method(pair, entry, args, Path()) for entry in entries], entries, texts, args)


def method(pair: BigLittleDecoder, entry: Entry, args: argparse.Namespace, counts: Path) -> PolicyMethod:
    """One row of the table."""
    _, policy, drafter = entry
    options: dict[str, Any] = {"max_new_tokens": args.max_new_tokens}
    if drafter is not None:
        options["drafter"] = drafter.format(counts=counts)
    return PolicyMethod(name_of(entry), pair, pair.resolve_policy(policy), options)


def name_of(entry: Entry) -> str:
    """Unique in its table."""
    return f"{entry[0]}, {entry[1]}"


def figures(
    methods: Sequence[PolicyMethod], entries: Sequence[Entry], texts: Sequence[Example], args: argparse.Namespace
) -> dict[str, Any]:
    """What is kept of each method."""
    how = {"warm_up": 5, "resamples": args.resamples, "baseline": name_of(ALONE[0])}
    (of_set,) = evaluate(methods, {"texts": list(texts)}, **how).sets.values()
    return {
        name_of(entry): {
            "who": entry[0],
            "policy": entry[1],
            "speedup": [own.speedup.value, own.speedup.low, own.speedup.high],
            "bleu": own.quality["bleu"].value if "bleu" in own.quality else None,
            "tokens_a_large_pass": own.counts["num_tokens"] / own.counts["num_large_steps"]
            if own.counts and own.counts["num_large_steps"]
            else None,
            "acceptance_rate": own.acceptance_rate,
            "same_tokens": own.same_tokens,
            "texts": of_set.num_examples,
        }
        for entry in entries
        if (own := of_set.methods.get(name_of(entry))) is not None
    }


def render(results: dict[str, Any]) -> str:
    """The measured part of the page."""
    machine = results["machine"]
    lines = [
        f"`python benchmarks/compare.py`: {machine['cpu']}, {machine['threads']} threads, torch "
        f"{machine['versions']['torch']}, commit {machine['commit']}; batch 1, all methods in turn on every text. "
        "Speed: times as fast as the large model alone, in brackets the 95 % paired bootstrap interval.",
    ]
    for pair, rows in results["pairs"].items():
        count = next(iter(rows.values()))["texts"]
        lines += ["", f"**{pair[0].upper()}{pair[1:]}**, {count} texts", ""]
        lines += ["| who drafts | policy | speed | BLEU | tokens a large pass | accepted | large's own text |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [line(row) for row in sorted(rows.values(), key=lambda row: -row["speedup"][0])]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    value, low, high = row["speedup"]
    cells = [
        row["who"],
        f"`{row['policy']}`",
        f"{value:.2f} [{shown(low, '.2f')}, {shown(high, '.2f')}]",
        shown(row["bleu"], ".1f"),
        shown(row["tokens_a_large_pass"], ".2f"),
        shown(row["acceptance_rate"], ".0%"),
        shown(row["same_tokens"], ".0%"),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
