"""The summary on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bild.data.quality import LABELS, TASKS
from bild.evaluation.cells import quality_rows, speed_rows
from bild.evaluation.summary import Summary

if TYPE_CHECKING:
    from rich.table import Table

LONG_NAME = 36
"""Characters of a method's name in a line."""
BORDER = 3
WIDTH = 220
"""Characters where stdout is no terminal: nothing should be cut off in a log."""


def print_summary(summary: Summary) -> None:
    """Write the tables of every set to stdout."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for name, figures in summary.sets.items():
        left_out = f", {figures.num_left_out} left out" if figures.num_left_out else ""
        console.print(f"\n{name}: {figures.num_examples} texts{left_out}; against {summary.baseline}", markup=False)
        for rows in (quality_rows(summary, name, everything=False), speed_rows(summary, name)):
            for part in fitting(rows, console.width):
                console.print(_table(part))
        for metric in TASKS[summary.task] if figures.signatures else ():
            console.print(f"{LABELS[metric]}: {figures.signatures[metric]}", markup=False)
    for name, why in summary.failed.items():
        console.print(f"{name}: no figures: {why}", markup=False)
    for note in summary.notes:
        console.print(note, markup=False)


def print_rows(tables: Mapping[str, list[list[str]]]) -> None:
    """Write tables to stdout, each under its title.

    Args:
        tables: a heading and rows, by title.
    """
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for title, rows in tables.items():
        console.print(f"\n{title}", markup=False)
        for part in fitting(rows, console.width):
            console.print(_table(part))


def fitting(rows: list[list[str]], width: int) -> list[list[list[str]]]:
    """The columns of a table as several tables that each fit, the first column in all of them.

    Args:
        rows: a heading, then the rows; maybe none.
        width: characters of a line.
    """
    if not rows:
        return []
    widths = [max(map(len, column)) + BORDER for column in zip(*rows, strict=True)]
    first = min(widths[0], LONG_NAME + BORDER)
    parts, used = [[0]], first
    for index in range(1, len(widths)):
        if used + widths[index] >= width and len(parts[-1]) > 1:
            parts.append([0])
            used = first
        parts[-1].append(index)
        used += widths[index]
    return [[[row[index] for index in part] for row in rows] for part in parts]


def _table(rows: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=any(len(row[0]) > LONG_NAME for row in rows))
    # Numbers stay whole; a long method name goes on in the next line.
    table.add_column(Text(rows[0][0]), overflow="fold", max_width=LONG_NAME)
    for heading in rows[0][1:]:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in rows[1:]:
        # Brackets of intervals would be read as markup.
        table.add_row(*map(Text, row))
    return table
