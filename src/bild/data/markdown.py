"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def row(cells: Sequence[str]) -> str:
    """A line of a table; a bar in a cell is no end of it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
