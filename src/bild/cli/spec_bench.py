"""Spec-Bench for bild evaluate: its options, and what is shown of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bild.cli import data_options as examples
from bild.cli.streams import print_json
from bild.errors import InputError

if TYPE_CHECKING:
    from bild.evaluation import Roster
    from bild.evaluation.spec_bench import BenchSummary, Questions

METHODS = "large,exact"
"""What is compared where nothing is said."""
SpecBench = Annotated[
    Path | None,
    typer.Option(
        help="Spec-Bench's question.jsonl, in place of --data: question_id, category and turns a line.",
        rich_help_panel=examples.PANEL,
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Groups of Spec-Bench: dialogue,translation,summarization,qa,math_reasoning,rag. Default: all. "
        "--limit counts in each.",
        rich_help_panel=examples.PANEL,
    ),
]


def refuse_unused(given: Mapping[str, Any], command: Callable[..., None]) -> None:
    """Refuse options that would change nothing: the questions say how they are read.

    Args:
        given: their values, by name.
        command: whose defaults they have where nobody gave them.

    Raises:
        InputError: one was given.
    """
    parameters = inspect.signature(command).parameters
    for name, value in given.items():
        if value != parameters[name.replace("-", "_")].default:
            raise InputError(f"--{name} changes nothing with --spec-bench; leave it out")


def read(file: Path, groups: str | None, limit: int | None) -> Questions:
    """The questions that were asked for."""
    from bild.evaluation.spec_bench import read_questions

    names = [] if groups is None else [name.strip() for name in groups.split(",") if name.strip()]
    return read_questions(file, groups=names, limit=limit)


def run(roster: Roster, questions: Questions, out: Path, as_json: bool, **options: Any) -> None:
    """Answer, compare, show."""
    from bild.errors import LoadError
    from bild.evaluation.spec_bench import spec_bench

    for line in questions.notes:
        _say(line)
    for name, why in roster.failed.items():
        raise LoadError(f"{name} cannot be run: {why}")
    try:
        summary = spec_bench(roster.methods, questions.questions, out=out, notes=questions.notes, say=_say, **options)
    except KeyboardInterrupt:
        _say(f"interrupted; the same command goes on where it stopped ({out})")
        raise
    _show(summary)
    _say(f"tables: {out / 'spec-bench.md'}")
    if as_json:
        print_json(summary.to_dict())


def _show(summary: BenchSummary) -> None:
    from bild.evaluation.spec_bench.table import notes, tables
    from bild.evaluation.table import print_rows

    print_rows({f"{figure}, against {summary.baseline}": rows for figure, rows in tables(summary).items()})
    for line in notes(summary):
        print(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
