"""bild evaluate: quality and speed of any set of methods on the same texts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli import pair_options as options
from bild.cli import spec_bench as bench
from bild.cli.streams import print_json
from bild.data.settings import DEFAULT_MAX_NEW_TOKENS
from bild.errors import InputError

if TYPE_CHECKING:
    from bild.evaluation import Data, Roster, Setup, Summary

RUN = "Run"
CHAT = {"chat": True, "completion": False}
"""Tasks that settle whether a text is a user's turn."""


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on where a killed one stopped.")],
    data: examples.OptionalData = None,
    spec_bench: bench.SpecBench = None,
    groups: bench.Groups = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="NAME[:key=value]*,…: bild, exact, large, small, calm, a peer; keys are thresholds, runtime, dtype "
            "and drafter. Default: large,small,bild; of Spec-Bench large,exact."
        ),
    ] = None,
    target_data: examples.TargetData = None,
    source_column: examples.SourceColumn = "source",
    target_column: examples.TargetColumn = "target",
    split: examples.Split = "test",
    limit: examples.Limit = None,
    bleu_tokenizer: examples.BleuTokenizer = "13a",
    task: examples.MetricsTask = "translation",
    prefix: examples.Prefix = "",
    max_new_tokens: examples.MaxNewTokens = DEFAULT_MAX_NEW_TOKENS,
    large: options.Large = None,
    small: options.Small = None,
    pair: options.PairName = None,
    middle: options.Middle = None,
    middle_window: options.MiddleWindow = None,
    drafter: options.Drafter = None,
    reward: options.Reward = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    runtime: options.Runtime = "static",
    trust_remote_code: options.TrustRemoteCode = False,
    src_lang: options.SrcLang = None,
    tgt_lang: options.TgtLang = None,
    baseline: Annotated[
        str | None, typer.Option(help="Method to compare with. Default: large, else the first.", rich_help_panel=RUN)
    ] = None,
    warm_up: Annotated[
        int | None,
        typer.Option(
            help="Examples decoded before the clock counts, 0… Default: 10; of Spec-Bench 3.", rich_help_panel=RUN
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Of the bootstrap, 1…", rich_help_panel=RUN)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", rich_help_panel=RUN)] = 0,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory in fresh processes.", rich_help_panel=RUN)
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete an earlier run in --out.", rich_help_panel=RUN)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as one JSON line at the end.")] = False,
) -> None:
    """Compare methods on the same texts, decoded in turn: quality, speed, agreement, memory.

    Texts are those of --data or the questions of --spec-bench. Tables go to stdout, progress to stderr; --out gets
    outputs.jsonl, summary.json and report.html (of Spec-Bench perplexity.jsonl and spec-bench.md).
    """
    # Read before anything is loaded: a wrong path should not cost the user half a minute.
    from bild.data import read_sets
    from bild.evaluation import Setup, load_methods, parse_methods

    if (data is None) == (spec_bench is None):
        raise InputError("give --data or --spec-bench, one of them")
    if spec_bench is None and groups is not None:
        raise InputError("--groups are those of --spec-bench; leave them out")
    if spec_bench is not None:
        given = {"target-data": target_data, "source-column": source_column, "target-column": target_column}
        given |= {"split": split, "bleu-tokenizer": bleu_tokenizer, "task": task, "prefix": prefix}
        bench.refuse_unused(given, evaluate)
    questions = None if spec_bench is None else bench.read(spec_bench, groups, limit)
    specs = parse_methods(methods if methods is not None else "large,small,bild" if data else bench.METHODS)
    columns = {"source_column": source_column, "target_column": target_column}
    sets = {} if data is None else read_sets(data, target_data, split=split, limit=limit, **columns)
    setup = Setup(
        pair=pair,
        large=large,
        small=small,
        drafter=drafter,
        dtype=dtype,
        device=device,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        max_new_tokens=max_new_tokens,
        chat=CHAT.get(task),
        src_lang=src_lang,
        tgt_lang=tgt_lang,
        middle=middle,
        middle_window=middle_window,
        reward=reward,
    )
    roster = load_methods(specs, setup, options.load_decoder)
    run: dict[str, Any] = {"baseline": baseline, "resamples": resamples, "seed": seed, "fresh": fresh}
    if warm_up is not None:
        run["warm_up"] = warm_up
    if questions is not None:
        with _progress(f"answering by {len(roster.methods)} methods", "questions") as progress:
            bench.run(roster, questions, out, as_json, settings=setup.describe(), progress=progress, **run)
        return
    run |= {"task": task, "prefix": prefix, "bleu_tokenizer": bleu_tokenizer}
    summary = _evaluate(roster, sets, setup, out, memory, run)
    _show(summary, out, as_json)


def _evaluate(
    roster: Roster, sets: dict[str, Data], setup: Setup, out: Path, memory: bool, run: dict[str, Any]
) -> Summary:
    from bild.evaluation import evaluate, measure_memory

    notes = [_skipped(name, data) for name, data in sets.items() if data.skipped]
    for line in [*notes, *(f"{name}: not run: {why}" for name, why in roster.failed.items())]:
        print(line, file=sys.stderr)
    try:
        with _progress(f"decoding by {len(roster.methods)} methods") as progress:
            return evaluate(
                roster.methods,
                {name: data.examples for name, data in sets.items()},
                out=out,
                failed=roster.failed,
                settings=setup.describe(),
                notes=notes,
                memory_of=(lambda method, sources: measure_memory(method, setup, sources)) if memory else None,
                progress=progress,
                **run,
            )
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on where it stopped ({out})", file=sys.stderr)
        raise


def _skipped(name: str, data: Data) -> str:
    first = "; ".join(data.skipped[:3])
    return f"{name}: {len(data.skipped)} of {len(data.skipped) + len(data.examples)} rows skipped: {first}"


def _show(summary: Summary, out: Path, as_json: bool) -> None:
    from bild.evaluation.table import print_summary

    print_summary(summary)
    print(f"report: {out / 'report.html'}", file=sys.stderr)
    if as_json:
        print_json(summary.to_dict())


@contextmanager
def _progress(title: str, what: str = "texts") -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on a terminal, else a line each tenth."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: _tenths(title, what, done, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Left alone, rich would send what is printed to the bar's console: results belong to stdout.
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True,
        redirect_stdout=False, redirect_stderr=False, refresh_per_second=1,
    ) as bar:  # fmt: skip
        job = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


def _tenths(title: str, what: str, done: int, total: int) -> None:
    if 10 * done // total > 10 * (done - 1) // total:
        print(f"{title}: {done} of {total} {what}", file=sys.stderr)
