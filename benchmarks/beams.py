"""Beam search of the bundled pair: what beams gain, what drafted layers save, and how good the small model's doubt is.

    python benchmarks/beams.py --data A/test.jsonl.gz B/test.jsonl.gz [--texts 100] [--dtype int8] [--docs]

Text by text, all ways in turn on every text. Passes and tokens read are counts and the same on every machine, seconds
are not. With --docs the tables go into docs/beams.md. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import sacrebleu
from machine import describe
from peers_report import heading

import bild
from bild import Result
from bild.data.examples import distinct_names
from bild.evaluation import read_examples
from docs import DOCS, replace_section

BEAMS = 4


class Way(NamedTuple):
    """How texts are found."""

    policy: str
    options: Mapping[str, Any]
    like: str = "large"
    """The way whose texts it may write, too."""


SEARCH = {"num_beams": BEAMS}
DRAWN = {**SEARCH, "do_sample": True, "temperature": 0.7}
WAYS = {
    "large, greedy": Way("large", {}),
    "large": Way("large", SEARCH),
    "exact, a layer": Way("exact:max_draft_tokens=1:fallback_threshold=0", SEARCH),
    "exact, two layers": Way("exact:max_draft_tokens=2:fallback_threshold=0", SEARCH),
    "exact, four layers": Way("exact:max_draft_tokens=4:fallback_threshold=0", SEARCH),
    "exact, until unsure": Way("exact", SEARCH),
    "large, drawn": Way("large", DRAWN, "large, drawn"),
    "exact, drawn, two layers": Way("exact:max_draft_tokens=2:fallback_threshold=0", DRAWN, "large, drawn"),
    "small": Way("small", SEARCH),
}
MOST = 128


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="test sets, as bild evaluate --data")
    parser.add_argument("--texts", type=int, default=100, help="first examples of each set")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--docs", action="store_true", help="rewrite the section of docs/beams.md")
    asked = parser.parse_args()
    examples = [example for path in asked.data for example in read_examples(path, limit=asked.texts).examples]
    decoder = bild.BigLittleDecoder.from_pretrained(runtime="static", dtype=asked.dtype)
    found: dict[str, list[Result]] = {name: [] for name in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number, example in enumerate([*examples[:5], *examples]):
        for name, way in WAYS.items():
            seed = {"seed": number} if "do_sample" in way.options else {}
            start = time.perf_counter()
            (result,) = decoder.generate([example.source], way.policy, max_new_tokens=MOST, **way.options, **seed)
            # The first few warm up.
            if number >= 5:
                seconds[name].append(time.perf_counter() - start)
                found[name].append(result)
        if number % 20 == 0:
            print(f"{number} of {len(examples)}", file=sys.stderr, flush=True)
    references = [[example.references[0] for example in examples]]
    rows = [row(name, found[name], seconds[name], references, found[way.like]) for name, way in WAYS.items()]
    doubt = agreement(found["exact, four layers"])
    if asked.docs:
        texts = dict.fromkeys(distinct_names(asked.data), asked.texts)
        first = heading({"machine": describe(), "texts": texts}) + f"; {asked.dtype}, compiled, text by text."
        replace_section(DOCS / "beams.md", "beams", render(first, rows, doubt))
    print(json.dumps({"rows": rows, "agreement": doubt, "machine": describe()}))


def row(
    name: str, results: Sequence[Result], seconds: Sequence[float], references: list[list[str]], plain: Sequence[Result]
) -> dict[str, Any]:
    """What a way came to."""
    texts = [result.text for result in results]
    commits = [commit for result in results for commit in result.rounds]
    rounds = sum(result.stats.num_rounds for result in results)
    writer = "small" if name == "small" else "large"
    return {
        "way": name,
        "bleu": round(sacrebleu.corpus_bleu(texts, references).score, 2),
        "same_text": sum(one.token_ids == other.token_ids for one, other in zip(results, plain, strict=True)),
        "texts": len(results),
        "ms": round(1e3 * statistics.fmean(seconds), 1),
        "passes": round(sum(commit.steps(writer) for commit in commits) / len(results), 1),
        "read": round(sum(commit.work[writer].read for commit in commits if writer in commit.work) / len(results), 1),
        "layers": round(1 + sum(commit.accepted for commit in commits) / rounds, 2) if rounds else None,
    }


def agreement(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Of layers by the small model's confidence, how many the large model chose, too."""
    tenths: dict[int, list[bool]] = {}
    for commit in (commit for result in results for commit in result.rounds):
        # What stands behind the first layer that went was drafted from what was not chosen.
        for at, confidence in enumerate(commit.confidences[: commit.accepted + 1]):
            tenths.setdefault(min(9, int(10 * confidence)), []).append(at < commit.accepted)
    return [
        {"confidence": tenth / 10, "layers": len(kept), "chosen": round(statistics.fmean(kept), 3)}
        for tenth, kept in sorted(tenths.items())
    ]


def render(first: str, rows: Sequence[dict[str, Any]], doubt: Sequence[dict[str, Any]]) -> str:
    """The section of docs/beams.md."""
    lines = [
        first,
        "",
        f"| {BEAMS} beams but for the first | BLEU | large's own text | ms | passes | tokens read | layers a pass |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {each['way']} | {each['bleu']} | {each['same_text']} of {each['texts']} | {each['ms']} | "
            f"{each['passes']} | {each['read']} | {each['layers'] or 1} |"
            for each in rows
        ),
        "",
        "Times, passes and tokens are those of a text; passes and tokens the large model's, in the last row the small "
        "one's. Drawn at a temperature of 0.7; the large model's own text is then that of the same seed. Of four "
        "layers those that the large model chose, too, by the small model's confidence in them, up to the first that "
        "it did not:",
        "",
        "| confidence from | " + " | ".join(f"{each['confidence']:.1f}" for each in doubt) + " |",
        "|---" * (len(doubt) + 1) + "|",
        "| layers | " + " | ".join(str(each["layers"]) for each in doubt) + " |",
        "| chosen | " + " | ".join(f"{each['chosen']:.0%}" for each in doubt) + " |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
