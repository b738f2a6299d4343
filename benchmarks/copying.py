"""What prompt lookup brings where texts are copied, and what it costs where they are not.

    python benchmarks/copying.py --data test.jsonl.gz [--limit 60] [--docs]

Plain translation: the sources as they are. Copying: each source with English sentences behind it that are to be kept,
the targets of the examples before it. Large alone and `exact` with n-grams take turns on every text, batch 1, in one
process; both write the same text, which is checked. With --chat LARGE the same for a chat model: the sources become the
text of a request to repeat it with one word changed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from machine import describe

from bild import BigLittleDecoder
from bild.data import Example, read_examples
from bild.decoding import Stats
from bild.errors import BildError
from bild.evaluation import evaluate
from bild.evaluation.own import PolicyMethod
from docs import DOCS, replace_section

WANTED = {"copying": 1.3, "plain": 0.97}
"""Least speedup over the large model alone."""
KEPT = 2
"""English sentences behind a source."""
DRAFTER = "ngram"
REQUEST = "Repeat this text exactly, but write 'person' for 'man':\n\n"


def main() -> None:
    """Decode, print, keep."""
    args = parse_arguments()
    examples = read_examples(args.data, limit=args.limit).examples
    results: dict[str, Any] = {"machine": describe(), "pairs": {}}
    pair = BigLittleDecoder.from_pretrained(args.pair, runtime=args.runtime, dtype=args.dtype)
    sets = {"plain": examples, "copying": with_passages(examples)}
    results["pairs"]["translation"] = compare(pair, sets, args)
    if args.chat is not None:
        where = {"runtime": args.runtime, "dtype": args.dtype}
        chat = BigLittleDecoder.from_pretrained(large=args.chat, drafter=DRAFTER, **where)
        results["pairs"]["chat"] = compare(chat, chat_sets(examples, args.chat_limit), args)
    lines = render(results)
    print("\n".join(lines))
    if args.docs:
        replace_section(DOCS / "drafters.md", "copying", "\n".join(lines))
    print(json.dumps(results["pairs"]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="examples with source and target, as bild evaluate --data")
    parser.add_argument("--limit", type=int, default=60, help="first examples")
    parser.add_argument("--pair", default=None, help="default: the bundled pair")
    parser.add_argument("--chat", default=None, help="a chat model")
    parser.add_argument("--chat-limit", type=int, default=10, help="texts for it")
    parser.add_argument("--runtime", default="static")
    parser.add_argument("--dtype", default="auto", help="in 16 bits a near tie may turn; float32: the same text")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--drafter", default=DRAFTER)
    parser.add_argument("--docs", action="store_true", help="rewrite the section of docs/drafters.md")
    return parser.parse_args()


def with_passages(examples: Sequence[Example]) -> list[Example]:
    """Each source with English sentences behind it, which its translation keeps."""
    made = []
    for at, example in enumerate(examples):
        kept = [examples[at - back].references[0] for back in range(1, KEPT + 1)]
        made.append(Example(example.id, " ".join([example.source, *kept]), (" ".join([example.references[0], *kept]),)))
    return made


def chat_sets(examples: Sequence[Example], count: int) -> dict[str, list[Example]]:
    """A question that copies nothing, and a text that is mostly repeated."""
    english = [example.references[0] for example in examples]
    texts = [" ".join(english[at : at + 4]) for at in range(0, 4 * count, 4)]
    return {
        "plain": [Example(str(at), f"Say in one sentence why: {text}", ()) for at, text in enumerate(english[:count])],
        "copying": [Example(str(at), REQUEST + text, ()) for at, text in enumerate(texts) if text],
    }


def compare(pair: BigLittleDecoder, sets: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Both methods on each set."""
    options = {"max_new_tokens": args.max_new_tokens}
    found = {}
    for name, examples in sets.items():
        methods = [
            PolicyMethod("large", pair, pair.resolve_policy("large"), options),
            PolicyMethod(args.drafter, pair, pair.resolve_policy("exact"), {**options, "drafter": args.drafter}),
        ]
        summary = evaluate(methods, {name: examples}, warm_up=5, resamples=500)
        figures = summary.sets[name].methods[args.drafter]
        counts = Stats.total(
            pair.generate([each.source], "exact", drafter=args.drafter, **options)[0].stats for each in examples
        )
        found[name] = {
            "texts": len(examples),
            "speedup": figures.speedup.value,
            "low": figures.speedup.low,
            "high": figures.speedup.high,
            "wanted": WANTED[name],
            "same_tokens": figures.same_tokens,
            "tokens_a_large_pass": counts.num_tokens / counts.num_large_steps,
            "empty_drafts": counts.hand_overs["nothing"] / counts.num_rounds,
        }
    return found


def render(results: dict[str, Any]) -> list[str]:
    """The table."""
    machine = results["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['versions']['torch']}; batch 1, in turn with "
        "the large model alone on every text. In brackets the 95 % paired bootstrap interval.",
        "",
        "| pair | texts | times as fast as large alone | wanted | tokens a large pass | empty drafts | same text |",
        "|---|---|---|---|---|---|---|",
    ]
    for pair, sets in results["pairs"].items():
        for name, row in sets.items():
            times = f"{row['speedup']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            shares = f"{row['empty_drafts']:.0%} | {row['same_tokens']:.0%}"
            passes = f"{row['tokens_a_large_pass']:.2f}"
            lines.append(f"| {pair} | {row['texts']}, {name} | {times} | {row['wanted']} | {passes} | {shares} |")
    return lines


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
