"""The pages of `bild reproduce` into docs/results/, and what they come to beside the paper into docs/results.md.

bild reproduce all --data … --dev … --out out/reproduce
bild reproduce table1 … --limit 2000 --dev-limit 1014 --out out/table1
python benchmarks/results.py out/reproduce out/table1
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

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


def main(folders: Sequence[Path]) -> None:
    """Copy and summarise."""
    PAGES.mkdir(exist_ok=True)
    for item in ITEMS:
        # A page that none of the folders has stays as it is: it names its own commit.
        for file in [each for folder in folders for each in (folder / f"{item}.md", folder / f"{item}.png")]:
            if file.exists():
                shutil.copy(file, PAGES)
    replace_section(DOCS / "results.md", "results", speeds(folders))


def speeds(folders: Sequence[Path]) -> str:
    """Table 1 in one table; the last folder that has it counts."""
    found = next(filter(None, (read("table1", folder) for folder in reversed(folders))), None)
    if found is None:
        names = ", ".join(map(str, folders))
        raise InputError(f"no table1.json in {names}; run bild reproduce all --out {folders[0]} first")
    sets, texts = found["values"]["sets"], found["inputs"]["data"]["test"]
    heading = ["", *(f"{name}, {texts[name]['texts']} texts: speedup · Δ" for name in sets), "paper: speedup"]
    rows = []
    for row, said in TABLE1.items():
        if all(row in of_set for of_set in sets.values()):
            ours = [of_set[row] for of_set in sets.values()]
            cells = [f"{interval(one['speedup'])}× · {interval(one['difference'], '+')}" for one in ours]
            rows.append([row, *cells, said])
    return table(heading, rows)


def interval(numbers: Sequence[float], sign: str = "") -> str:
    """A value and its 95 % interval."""
    value, low, high = (f"{number:{sign}.2f}" for number in numbers)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    try:
        main([Path(name) for name in sys.argv[1:]])
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
