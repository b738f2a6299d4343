"""What an item comes to, and its files: Markdown to read, JSON to compute with, PNG to look at."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.data.files import write_whole
from bild.data.json_text import from_json, to_json
from bild.data.markdown import row
from bild.errors import writing
from bild.machine import describe_machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


@dataclass
class Result:
    """One table or figure.

    Args:
        title: a heading.
        parts: paragraphs and tables of Markdown, in order.
        values: all numbers, plain JSON values.
        draw: fills a figure; None: the paper has none.
        missing: what was not given and is therefore not here.
    """

    title: str
    parts: list[str]
    values: dict[str, Any]
    draw: Callable[[Figure], None] | None = None
    missing: list[str] = field(default_factory=list)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(map(row, lines))


def write(result: Result, item: str, out: Path, about: Mapping[str, Any]) -> list[Path]:
    """Write ``ITEM.md``, ``ITEM.json`` and, for a figure, ``ITEM.png``.

    Args:
        result: of the item.
        item: its name.
        out: folder.
        about: what it was computed from.

    Raises:
        InputError: the folder cannot be written.
    """
    machine = describe_machine()
    values = {"item": item, "title": result.title, "missing": result.missing, **about,
              "machine": machine, "values": result.values}  # fmt: skip
    text = "\n\n".join([f"# {result.title}", *result.parts, *_missing(result), _foot(machine, about)])
    files = [out / f"{item}.md", out / f"{item}.json"]
    with writing(out):
        if result.draw is not None:
            files.append(out / f"{item}.png")
            _draw(result.draw, files[-1])
            text += f"\n\n![{result.title}]({item}.png)"
        write_whole(files[0], text + "\n")
        write_whole(files[1], to_json(values, indent=1) + "\n")
    return files


def read(item: str, out: Path) -> dict[str, Any] | None:
    """The JSON of an item, None where there is none."""
    try:
        values = from_json((out / f"{item}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and "missing" in values else None


def _draw(draw: Callable[[Figure], None], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw(figure)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    write_whole(file, drawn.getvalue())


def _missing(result: Result) -> list[str]:
    return ["Not here: " + "; ".join(result.missing) + "."] if result.missing else []


def _foot(machine: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items() if value)
    inputs = about["inputs"]
    sets = "; ".join(
        f"{name} ({split}): {one['texts']} texts, sha256 {one['sha256']}"
        for split, of_split in inputs["data"].items()
        for name, one in of_split.items()
    )
    where = f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"*{where}; {versions}; commit {machine['commit']}; {machine['date']}. Batch 1. Data: {sets}.*"
