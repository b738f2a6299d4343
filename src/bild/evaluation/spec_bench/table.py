"""The tables of a run: a figure each, a row a method, a column a group, as Spec-Bench prints them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bild.data.markdown import row
from bild.evaluation.cells import NOTHING, interval
from bild.evaluation.spec_bench.figures import BenchFigures, BenchSummary


def tables(summary: BenchSummary) -> dict[str, list[list[str]]]:
    """A heading and a row a method, by the name of the figure."""
    heading = ["method", *(f"{name} ({each.num_questions})" for name, each in summary.groups.items())]
    return {
        figure: [heading, *([method, *_cells(summary, method, cell)] for method in summary.whole.methods)]
        for figure, cell in FIGURES.items()
    }


def as_markdown(summary: BenchSummary) -> str:
    """All tables as a page."""
    machine = summary.machine
    facts = [str(machine[key]) for key in ("cpu", "gpu", "commit", "date") if machine.get(key)]
    lines = ["# Spec-Bench", "", f"Against {summary.baseline}; {'; '.join(facts)}.", ""]
    for figure, rows in tables(summary).items():
        lines += [f"## {figure[0].upper()}{figure[1:]}", "", *markdown(rows), ""]
    lines += [f"- {line}" for line in notes(summary)]
    return "\n".join(lines).rstrip() + "\n"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A heading and rows as lines of a Markdown table."""
    head, *body = map(row, rows)
    return [head, f"|{'---|' * len(rows[0])}", *body]


def notes(summary: BenchSummary) -> list[str]:
    """What a reader should know: what was left out, and why."""
    count = summary.num_left_out
    if not count:
        return summary.notes
    first = summary.failures[0]
    what = "1 question was" if count == 1 else f"{count} questions were"
    return [*summary.notes, f"{what} left out: {first.id}, {first.method}: {first.error}"]


def _cells(summary: BenchSummary, method: str, cell: Callable[[BenchFigures], str]) -> list[str]:
    return [cell(group.methods[method]) for group in summary.groups.values()]


def _number(value: float | None, places: int) -> str:
    return NOTHING if value is None else f"{value:.{places}f}"


FIGURES: dict[str, Callable[[BenchFigures], str]] = {
    "times as fast": lambda each: interval(each.speedup),
    "tokens a second": lambda each: _number(each.tokens_per_second, 1),
    "accepted length": lambda each: _number(each.mean_acceptance_length, 2),
    "same tokens": lambda each: f"{each.same_tokens:.1%}",
    "perplexity under the large model": lambda each: _number(each.perplexity, 3),
    "change of perplexity in percent": lambda each: interval(each.perplexity_change, sign="+"),
}
"""What each table shows."""
