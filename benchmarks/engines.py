"""bild beside CTranslate2, each at its best: every number of threads, lanes x threads, batch size and dtype.

    python benchmarks/engines.py --data A/test.jsonl.gz B/test.jsonl.gz [--texts 256] [--rounds 3] [--docs]

Latency: text by text, text in to text out. Throughput: all texts at once, sorted by length for all alike; lanes are
batches decoded side by side (CTranslate2: translators), each by so many threads. Every engine and setting is a process
of its own, loaded before any is timed; rounds go through all of them in turn, and the median of the rounds counts. The
best setting of an engine is what it is compared at. Results go to benchmarks/results/PROCESSOR/engines.json, and with
--docs those of every machine into docs/performance.md. The last line is JSON; a ratio above 1 means that we are faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sacrebleu
import torch
from engines_report import BEAMS, RESULTS, render, summary
from machine import describe, slug

from bild.data.examples import distinct_names
from bild.errors import BildError, InputError
from bild.evaluation import read_examples
from bild.evaluation.peers.engines import converted
from bild.evaluation.peers.environment import clean_variables
from bild.generation.pair import choose_pair
from bild.models import resolve_dtype
from docs import PERFORMANCE, replace_section

CHILD = Path(__file__).with_name("engines_child.py")
POLICIES = ("bild", "exact", "large", "small")
DTYPES = {"bild": ("int8", "auto"), "ctranslate2": ("int8", "int8_bfloat16", "float32")}
"""``auto`` is bfloat16 or float32, whichever is the faster on the machine."""
BATCHES = (8, 32, 64)
WARM_UP = 24
MAX_NEW_TOKENS = 128


@dataclass
class Child:
    """A process that has loaded an engine in one setting."""

    engine: str
    setting: dict[str, Any]
    """``dtype``, ``lanes`` and ``threads``; of CTranslate2 also ``policy``, the model it has."""
    process: subprocess.Popen[str]

    def loads(self) -> bool:
        """Whether it is ready; not every engine computes in every dtype on every processor."""
        try:
            self.hear()
        except InputError as error:
            say(f"not run: {error}")
            return False
        return True

    def ask(self, **question: Any) -> dict[str, Any]:
        """What it answers."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, Any]:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise InputError(f"{self.engine} {self.setting} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Cell:
    """One setting of one engine, asked for one thing, and what it came to."""

    child: Child
    question: dict[str, Any]
    rounds: list[float] = field(default_factory=list)
    """Milliseconds a text, or texts a second."""
    written: list[str] = field(default_factory=list)

    def measure(self, texts: int) -> None:
        answer = self.child.ask(**self.question, limit=texts, warm_up=min(texts, WARM_UP))
        total = sum(answer["seconds"])
        self.rounds.append(1e3 * total / texts if self.question["task"] == "latency" else texts / total)
        self.written = answer["texts"]

    def result(self, references: Sequence[str]) -> dict[str, Any]:
        spread = {"value": statistics.median(self.rounds), "rounds": [round(each, 3) for each in self.rounds]}
        bleu = sacrebleu.corpus_bleu(self.written, [references]).score
        policy = {"policy": self.child.setting.get("policy")} if "policy" not in self.question else {}
        asked = {"engine": self.child.engine, **self.child.setting, **self.question, **policy}
        return {**asked, **spread, "bleu": round(bleu, 2)}


def main() -> None:
    """Load, measure, keep, print."""
    asked = parse_arguments()
    sources, references = read(asked.data, asked.texts)
    pair = choose_pair(asked.pair, None, None)
    cores, own = torch.get_num_threads(), [name for name in asked.policies.split(",") if name]
    with ExitStack() as stack:
        children = [
            *bild_children(asked.pair, asked.dtypes, sources, cores),
            *ctranslate2_children(pair, sources, cores),
        ]
        for child in children:
            stack.callback(child.process.kill)
        children = [child for child in children if child.loads()]
        cells = [cell for child in children for cell in questions(child, own, asked.batches)]
        for number in range(asked.rounds):
            for at in range(len(cells)):
                cells[(at + number * len(cells) // asked.rounds) % len(cells)].measure(len(sources))
            say(f"round {number + 1} of {asked.rounds}")
    facts = describe()
    found = {
        "machine": facts,
        "texts": dict(zip(distinct_names(asked.data), [asked.texts] * len(asked.data), strict=True)),
        "results": [cell.result(references) for cell in cells],
    }
    found["summary"] = summary(found["results"])
    file = RESULTS / slug(facts) / "engines.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if asked.docs:
        replace_section(PERFORMANCE, "engines", render(sorted(RESULTS.glob("*/engines.json"))))
    print(json.dumps(found["summary"]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="test sets, as bild evaluate --data")
    parser.add_argument("--texts", type=int, default=256, help="first examples of each set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pair", default=None, help="default: the bundled pair")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES["bild"]), help="of bild")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--docs", action="store_true", help="rewrite the section of docs/performance.md")
    return parser.parse_args()


def read(paths: Sequence[str], limit: int) -> tuple[list[str], list[str]]:
    """Sources, sorted by length, and their references."""
    examples = [example for path in paths for example in read_examples(path, limit=limit).examples]
    ordered = sorted(examples, key=lambda example: len(example.source))
    return [each.source for each in ordered], [each.references[0] for each in ordered]


def layouts(cores: int) -> list[tuple[int, int]]:
    """Lanes and threads of each: one lane of every number of threads, and all cores in lanes of one."""
    one = [(1, threads) for threads in sorted({1, cores})]
    return [*one, (cores, 1)] if cores > 1 else one


def bild_children(pair: str | None, dtypes: Sequence[str], texts: list[str], cores: int) -> Iterator[Child]:
    """A process for each dtype and layout."""
    own = str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    for dtype in [own if dtype == "auto" else dtype for dtype in dtypes]:
        for lanes, threads in layouts(cores):
            setting = {"dtype": dtype, "lanes": lanes, "threads": threads}
            yield start("bild", sys.executable, setting, {"pair": pair, "texts": texts})


def ctranslate2_children(pair: Any, texts: list[str], cores: int) -> Iterator[Child]:
    """A process for each model, dtype and layout."""
    for policy, checkpoint in (("large", pair.large), ("small", pair.cheap)):
        for dtype in DTYPES["ctranslate2"]:
            python, model = converted("ctranslate2", str(checkpoint), dtype, cores)
            more = {"checkpoint": str(checkpoint), "model": str(model), "texts": texts}
            for lanes, threads in layouts(cores):
                setting = {"dtype": dtype, "lanes": lanes, "threads": threads, "policy": policy}
                yield start("ctranslate2", str(python), setting, more)


def start(engine: str, python: str, setting: dict[str, Any], more: dict[str, Any]) -> Child:
    """The process, which loads by itself."""
    settings = json.dumps({"max_new_tokens": MAX_NEW_TOKENS, **setting, **more})
    command = [python, str(CHILD), engine, settings]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    # Teams of OpenMP as large as is asked for: where there are more threads than cores, waiting ones no longer spin.
    own = clean_variables() | {"OMP_NUM_THREADS": str(setting["threads"])}
    return Child(engine, setting, subprocess.Popen(command, stderr=subprocess.DEVNULL, env=own, **pipes))


def questions(child: Child, policies: Sequence[str], batches: Sequence[int]) -> Iterator[Cell]:
    """What is asked of it: latency with one lane, throughput by batch; of the large model also a beam search."""
    own = child.engine == "bild"
    mine: list[dict[str, Any]] = [{"policy": policy} for policy in policies] if own else [{}]
    if child.setting.get("policy", "large") == "large":
        mine.append({"beams": BEAMS} | ({"policy": "large"} if own else {}))
    for each in mine:
        if child.setting["lanes"] == 1:
            yield Cell(child, {"task": "latency", **each})
        # A text of a search has as many rows as beams.
        for batch in batches if "beams" not in each else [max(1, batch // 2) for batch in batches]:
            yield Cell(child, {"task": "throughput", "batch": batch, **each})


def say(line: str) -> None:
    """To stderr: stdout has the result."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
