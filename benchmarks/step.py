"""Milliseconds of one forward pass, by runtime and by how many tokens it reads, beside the least it can take.

    python benchmarks/step.py [--shapes t5-large …] [--runs eager-bf16 static-bf16 …] [--docs]
    python benchmarks/step.py --table        # render what was measured before

A decoder in the middle of a sentence (16 source tokens, 20 tokens written) reads q new tokens and scores
all of them, then forgets them, over and over: q = 1 is a written token, q > 1 the verification of a draft.
The runs of a shape take turns in one process, in an order that rotates. `eager` is transformers' own module
under a DynamicCache, uncompiled. The floor is what a step must read (benchmarks/floor.py) divided by the
bandwidth measured in the same run (benchmarks/machine.py).

Each shape is written to benchmarks/results/step-MACHINE.json when it is done; `--resume` goes on after a run
that was stopped. Ends in one JSON line: milliseconds by shape, run and q.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import torch
from floor import step_bytes
from shapes import SHAPES, build
from step_report import plain, plot, render, summary
from timing import interleave, timed_round
from transformers import PreTrainedModel
from transformers.utils import logging

from bild.decoding import Scorer
from bild.errors import BildError, InputError, LoadError
from bild.models import EagerModel, resolve_dtype, round_weights
from docs import DOCS, PERFORMANCE, replace_section

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = (1, 2, 4, 6, 11)
"""New tokens: one written, drafts of 1 to 10 tokens verified."""
SOURCE = list(range(100, 116))
PREFIX = list(range(200, 220))
WARM_UP = 3


@dataclass(frozen=True)
class Run:
    """One way to run a network.

    Args:
        dtype: of weights and activations; ``"auto"``: the fastest on the machine.
        runtime: ``"eager"`` or ``"static"``.
        rounded: ``"int8"`` or ``"int4"``: what linear layers are rounded to.
    """

    dtype: str
    runtime: str
    rounded: str | None = None

    @property
    def weights(self) -> str:
        """What its floor is called after: the format of its weights."""
        return {"float32": "fp32", "bfloat16": "bf16"}[self.dtype] if self.rounded is None else self.rounded

    def prepare(self, shape: str) -> PreTrainedModel:
        """The shape's network in this run's format."""
        return round_weights(build(shape, resolve_dtype(self.dtype)), self.rounded)

    def start(self, network: PreTrainedModel) -> Scorer:
        """A scorer of one row that has read the prefix.

        Raises:
            LoadError: a static run that would silently be an eager one.
        """
        if self.runtime == "static":
            # Here and not above: eager runs need no compiler.
            from bild.models import CompiledModel

            model: EagerModel = CompiledModel(network, lambda graph: say(f"  compiling {graph}"))
            if not model.is_compiled:
                raise LoadError(f"{type(network).__name__} cannot be compiled here; choose eager runs with --runs")
        else:
            model = EagerModel(network)
        scorer = model.start([SOURCE if network.config.is_encoder_decoder else []])
        scorer.extend([PREFIX])
        return scorer


RUNS = {
    "eager-fp32": Run("float32", "eager"),
    "eager-bf16": Run("bfloat16", "eager"),
    "static-fp32": Run("float32", "static"),
    "static-bf16": Run("bfloat16", "static"),
    "static-int8": Run("auto", "static", rounded="int8"),
    "static-int4": Run("auto", "static", rounded="int4"),
}


def main() -> None:
    """Measure what is asked for, print the tables, then everything as one JSON line."""
    args = parse()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    facts = machine.describe()
    file = args.out / f"step-{machine.slug(facts)}-{facts['threads']}-threads.json"
    results = load(file)
    if not args.table:
        for shape in args.shapes:
            if args.resume and is_done(results.get(shape), args.runs, args.lengths):
                continue
            results[shape] = {"machine": facts, **measure(shape, args.runs, args.lengths, args.rounds, args.seconds)}
            save(file, results)
            free_memory()
    if not results:
        raise InputError(f"nothing is measured on this machine yet ({file}); run without --table")
    results = {shape: results[shape] for shape in SHAPES if shape in results}
    print(plain(results))
    if args.docs:
        plot(results, DOCS / "step.svg")
        replace_section(PERFORMANCE, "step", render(results, "step.svg"))
    print(json.dumps(summary(results)))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES, metavar="SHAPE",
                        help=f"from {', '.join(SHAPES)}; all by default")  # fmt: skip
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=suitable_runs(), metavar="RUN",
                        help=f"from {', '.join(RUNS)}; by default those that suit the machine")  # fmt: skip
    parser.add_argument("--lengths", nargs="+", type=positive, default=LENGTHS, metavar="Q",
                        help="new tokens of a forward pass; 1 2 4 6 11 by default")  # fmt: skip
    parser.add_argument("--rounds", type=positive, default=30, help="least timed rounds of a shape; 30 by default")
    parser.add_argument("--seconds", type=float, default=20, help="keep going for so long where rounds are short")
    parser.add_argument("--threads", type=positive, help="of torch; as many as it chooses by default")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="of the result files")
    parser.add_argument("--resume", action="store_true", help="skip shapes measured at this commit with these runs")
    parser.add_argument("--table", action="store_true", help="measure nothing, render what is there")
    parser.add_argument("--docs", action="store_true", help="rewrite the table and the plot of docs/performance.md")
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def suitable_runs() -> list[str]:
    """All runs but int4, which not every machine has, and static float32 where the CPU multiplies bfloat16."""
    others = {"static-int4"} if resolve_dtype("auto") == torch.float32 else {"static-int4", "static-fp32"}
    return [name for name in RUNS if name not in others]


def measure(shape: str, runs: Sequence[str], lengths: Sequence[int], rounds: int, seconds: float) -> dict[str, Any]:
    """Time every run of a shape at every length.

    Args:
        shape: one of :data:`shapes.SHAPES`.
        runs: names of :data:`RUNS`.
        lengths: new tokens of a forward pass.
        rounds: least timed rounds.
        seconds: least time over which rounds go on, up to 300 rounds.

    Returns:
        ``bandwidth`` of the machine, ``bytes`` a step reads by format, ``floor_ms`` by format, ``lengths`` and
        ``runs``: median, 10th and 90th percentile in ms and the number of rounds, by run and length.
    """
    say(f"{shape}: bandwidth")
    result: dict[str, Any] = {"bandwidth": machine.read_bandwidth(), "bytes": {}, "lengths": list(lengths)}
    scorers = {}
    for name in runs:
        say(f"{shape}: {name}: building and warming up")
        network = RUNS[name].prepare(shape)
        source = SOURCE if network.config.is_encoder_decoder else []
        result["bytes"][RUNS[name].weights] = step_bytes(network, source, PREFIX)
        scorers[name] = RUNS[name].start(network)
        for _ in range(WARM_UP):
            timed_round(scorers[name], lengths, len(PREFIX))
    result["floor_ms"] = {weights: floor_ms(parts, result["bandwidth"]) for weights, parts in result["bytes"].items()}
    say(f"{shape}: timing")
    result["runs"] = interleave(scorers, lengths, len(PREFIX), rounds, seconds)
    return result


def free_memory() -> None:
    """Let go of a shape's networks, which compiled code would keep for the rest of the process."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()


def floor_ms(parts: dict[str, int], bandwidth: dict[str, dict[str, float]]) -> float:
    """Milliseconds to read a step's bytes once.

    Args:
        parts: from :func:`floor.step_bytes`.
        bandwidth: from :func:`machine.read_bandwidth`.
    """
    total = sum(parts.values())
    return 1e3 * total / (1e9 * machine.bandwidth_for(bandwidth, total))


def is_done(entry: dict[str, Any] | None, runs: Sequence[str], lengths: Sequence[int]) -> bool:
    """Whether a shape was measured at this commit with at least these runs and lengths."""
    if entry is None:
        return False
    commits = [str(facts["commit"]).rstrip("+") for facts in (entry["machine"], machine.describe())]
    return commits[0] == commits[1] and set(runs) <= set(entry["runs"]) and set(lengths) <= set(entry["lengths"])


def load(file: Path) -> dict[str, Any]:
    """Earlier results by shape; nothing where there is no file.

    Raises:
        InputError: a file that holds something else.
    """
    if not file.exists():
        return {}
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["shapes"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} holds no results of this benchmark ({type(error).__name__}); remove it") from None
    return results


def save(file: Path, results: dict[str, Any]) -> None:
    """Write results so that a run stopped meanwhile leaves the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".tmp")
    draft.write_text(json.dumps({"shapes": results}, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run(command: Callable[[], None]) -> int:
    """The exit code of a command; a user's mistake is one line on stderr."""
    try:
        command()
    except BildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
