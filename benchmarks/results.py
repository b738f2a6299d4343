"""The pages of `bild reproduce` into docs/results/, and what they come to beside the paper into docs/results.md.

bild reproduce all --data … --dev … --out out/reproduce
python benchmarks/results.py out/reproduce
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bild.errors import BildError, InputError
from bild.reproduction.items import ITEMS
from bild.reproduction.result import read, table
from docs import DOCS, replace_section

PAGES = DOCS / "results"
TABLE1 = {
    "unaligned, minimal loss": "1.34× to 1.71×",
    "aligned, minimal loss": "1.47× to 1.85×",
    "unaligned, within one point": "1.43× to 2.05×",
    "aligned, within one point": "1.70× to 2.12×",
}
"""Rows, and the paper's speedups on its four sets."""


def main(folder: Path) -> None:
    """Copy and summarise."""
    PAGES.mkdir(exist_ok=True)
    for item in ITEMS:
        page = folder / f"{item}.md"
        if not page.exists():
            raise InputError(f"{page} is missing; run bild reproduce all --out {folder} first")
        for file in (page, page.with_suffix(".png")):
            if file.exists():
                shutil.copy(file, PAGES)
    replace_section(DOCS / "results.md", "results", "\n\n".join([speeds(folder), took(folder)]))


def speeds(folder: Path) -> str:
    """Table 1 in one table."""
    sets = values(folder, "table1")["sets"]
    heading = ["", *(f"{name}: speedup · Δ" for name in sets), "paper: speedup"]
    rows = []
    for row, said in TABLE1.items():
        if all(row in of_set for of_set in sets.values()):
            found = [of_set[row] for of_set in sets.values()]
            cells = [f"{interval(one['speedup'])}× · {interval(one['difference'], '+')}" for one in found]
            rows.append([row, *cells, said])
    return table(heading, rows)


def took(folder: Path) -> str:
    """How long each item took, in the order in which they shared work."""
    seconds = {item: (read(item, folder) or {}).get("seconds", 0.0) for item in ITEMS}
    parts = ", ".join(f"{item} {value:.0f}" for item, value in seconds.items())
    return f"Seconds: {parts}; all {sum(seconds.values()) / 60:.0f} minutes."


def values(folder: Path, item: str) -> dict[str, Any]:
    """The numbers of an item."""
    found = read(item, folder)
    if found is None:
        raise InputError(f"{folder / item}.json is missing; run bild reproduce {item} --out {folder} first")
    numbers: dict[str, Any] = found["values"]
    return numbers


def interval(numbers: Sequence[float], sign: str = "") -> str:
    """A value and its 95 % interval."""
    value, low, high = (f"{number:{sign}.2f}" for number in numbers)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
