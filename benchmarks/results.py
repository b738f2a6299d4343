"""The pages of `bild reproduce` into docs/results/, and what they come to beside the paper into docs/results.md.

bild reproduce all --data … --dev … --out out/reproduce
python benchmarks/results.py out/reproduce
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bild.errors import BildError, InputError
from bild.reproduction.items import ITEMS
from bild.reproduction.result import table
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


def last(folders: Sequence[Path], name: str) -> Path:
    """This file of the last folder that has it."""
    found = [folder / name for folder in folders if (folder / name).exists()]
    if not found:
        raise InputError(
            f"no {name} in {', '.join(map(str, folders))}; run bild reproduce all --out {folders[0]} first"
        )
    return found[-1]


def speeds(folders: Sequence[Path]) -> str:
    """Table 1 in one table."""
    found = json.loads(last(folders, "table1.json").read_text(encoding="utf-8"))
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
