"""Rows of CSV and TSV files, as spreadsheets, pandas, Tatoeba and WMT write them."""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice

from bild.data.lines import Line

LONGEST_FIELD = min(sys.maxsize, 2**31 - 1)
"""Characters of a cell; Python's own limit is 131,072, less than a long document has."""
MOST_LINES = 10_000
"""Lines of a cell; a quotation mark that is not closed by then never will be."""
DELIMITERS = ",;\t"

Cells = tuple[int, list[str], str | None]
"""Number of the row's last line, its cells, and what is wrong with it."""


def csv_cells(lines: Iterator[Line]) -> Iterator[Cells]:
    """Rows of a CSV file: cells in quotation marks may hold commas, doubled quotation marks and line ends.

    Semicolons or tabs separate the cells where the first line has more of them than commas, as spreadsheets write
    where a comma is part of a number. A line that opens a quotation mark and never closes it is one bad row, and
    takes no other with it.
    """
    # Of the whole process, so only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    waiting = deque(islice(lines, 1))
    delimiter = max(DELIMITERS, key=waiting[0].text.count) if waiting else ","
    while True:
        taken: list[Line] = []
        try:
            cells = next(csv.reader(_taking(waiting, lines, taken), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            waiting.extendleft(reversed(taken[1:]))
            yield taken[0].number, [], f"not a row of a table ({error})"
            continue
        if cells is None:
            return
        if cells:
            wrong = next((line.error for line in taken if line.error is not None), None)
            yield taken[-1].number, cells, wrong


def _taking(waiting: deque[Line], lines: Iterator[Line], taken: list[Line]) -> Iterator[str]:
    """The text of the lines put back and of those that follow, each kept as it is taken."""
    for _ in range(MOST_LINES):
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            return
        taken.append(line)
        yield line.text + "\n"


def tsv_cells(lines: Iterator[Line]) -> Iterator[Cells]:
    """Rows of a TSV file: a line is a row, a tab ends a cell, and a quotation mark is a character like any other.

    A cell that can only have been quoted by a program, because it begins and ends with a quotation mark and every
    one inside is doubled, is taken out of its quotes.
    """
    for line in lines:
        if line.text:
            yield line.number, [_unquoted(cell) for cell in line.text.split("\t")], line.error


def _unquoted(cell: str) -> str:
    inside = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in inside
    return inside.replace('""', '"') if quoted and '"' not in inside.replace('""', "") else cell


def named_cells(
    rows: Iterator[Cells],
) -> Iterator[tuple[int, dict[str, str | None] | None, str | None]]:
    """The cells of each row by the names in the first one; a row that is too short lacks its last columns."""
    _, names, wrong = next(rows, (0, [], None))
    twice = next((name for name in names if name.strip() and names.count(name) > 1), None)
    if twice is not None:
        wrong = f"two columns are named {twice!r}; rename one"
    if wrong is not None:
        yield 1, None, wrong
        return
    for number, cells, error in rows:
        extra = cells[len(names) :]
        if error is None and any(extra):
            error = f"{len(cells)} cells, and the first line names {len(names)} columns"
        padded = [*cells, *[None] * (len(names) - len(cells))]
        yield number, dict(zip(names, islice(padded, len(names)), strict=True)), error
