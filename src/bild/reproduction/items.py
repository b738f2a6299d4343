"""The tables and figures by name, and how they are computed one after the other."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.errors import InputError
from bild.machine import versions
from bild.reproduction import early_exit, figure2, figure8, figure9, speculative, table1, table5, tradeoffs
from bild.reproduction.inputs import Inputs
from bild.reproduction.result import Result, read, write
from bild.reproduction.workspace import Workspace

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder

ITEMS: dict[str, Callable[[Workspace], Result]] = {
    "table1": table1.compute,
    "figure2": figure2.compute,
    "figure4": tradeoffs.figure4,
    "figure5": tradeoffs.figure5,
    "figure10": tradeoffs.figure10,
    "figure8": figure8.compute,
    "figure9": figure9.compute,
    "figure6": early_exit.figure6,
    "figure7": early_exit.figure7,
    "table3": speculative.table3,
    "table4": speculative.table4,
    "table5": table5.compute,
}
"""In an order in which each finds most of its work done."""
ALL = "all"


def reproduce(
    item: str,
    inputs: Inputs,
    out: Path,
    *,
    load: Callable[..., BigLittleDecoder] | None = None,
    say: Callable[[str], None] = lambda line: None,
    done: Callable[[str], None] = lambda line: None,
    fresh: bool = False,
) -> list[Path]:
    """Compute a table or figure of the paper, or all of them, on any pair and data.

    Args:
        item: a name of :data:`ITEMS`, or ``"all"``, which leaves out what is already there from the same inputs.
        inputs: what it is computed from.
        out: folder of the files; its ``work`` keeps what a killed run goes on from.
        load: as for :class:`Workspace`.
        say: told what is being done.
        done: told a line for every finished item.
        fresh: delete the work of earlier runs, and compute what is already there again.

    Returns:
        The files of every item.

    Raises:
        InputError: an unknown item, data that an item needs and is not given, or a folder that cannot be written.
    """
    names = item_names(item)
    workspace = Workspace(inputs, out, load=load, say=say, fresh=fresh)
    about = json.loads(json.dumps({"inputs": {**inputs.describe(), "runtime": inputs.setup.runtime}}))
    about["versions"] = versions()
    start, files = time.monotonic(), []
    for name in names:
        if item == ALL and not fresh and _is_there(name, out, about):
            done(f"{name}: there already, from the same inputs ({out / name}.md)")
            continue
        began = time.monotonic()
        result = ITEMS[name](workspace)
        took = {"seconds": round(time.monotonic() - began, 1)}
        files += write(result, name, out, about | took)
        missing = f"; not here: {'; '.join(result.missing)}" if result.missing else ""
        done(f"{name}: {out / name}.md after {time.monotonic() - start:.0f} s{missing}")
    return files


def item_names(item: str) -> list[str]:
    """The items a name stands for.

    Raises:
        InputError: none.
    """
    if item not in (ALL, *ITEMS):
        raise InputError(f"item is {item!r}; allowed are {', '.join(ITEMS)}, {ALL}")
    return list(ITEMS) if item == ALL else [item]


def _is_there(name: str, out: Path, about: dict[str, Any]) -> bool:
    there = read(name, out)
    if there is None:
        return False
    pictured = not name.startswith("table") and not there["missing"]
    files = [out / f"{name}.md", *([out / f"{name}.png"] if pictured else [])]
    whole = all(file.is_file() and file.stat().st_size for file in files)
    return whole and all(there.get(key) == value for key, value in about.items())
