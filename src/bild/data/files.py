"""Rows of local data files: JSON lines, tables with a header, plain and parallel text; gzipped or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bild.data.json_text import from_json
from bild.data.lines import Line, read_lines
from bild.data.tables import csv_cells, named_cells, tsv_cells
from bild.errors import InputError, reading, writing

TABLES = {".csv": csv_cells, ".tsv": tsv_cells}


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of a data file, or why there is none."""

    place: str
    """``"line 3"``."""
    id: str
    value: dict[str, Any] | None
    error: str | None = None


def read_rows(
    path: Path, target: Path | None = None, names: tuple[str, str] = ("source", "target")
) -> Iterator[FileRow]:
    """The rows of a file, by its suffix, as they are asked for.

    Args:
        path: ``.jsonl`` (or ``.ndjson``), ``.csv``, ``.tsv``, or any other text file with one source a line; also
            ``.gz``, and in capitals.
        target: references of a text file, line by line.
        names: what the columns of a text file are called in its rows.

    Raises:
        InputError: a file that cannot be read, or two of different length.
    """
    kind = suffix_of(path)
    if target is not None and (kind == ".jsonl" or kind in TABLES):
        raise InputError(f"{path} names its own target column; --target-data goes with a text file")
    if kind == ".json":
        raise InputError(f"{path}: a JSON document is not read; give JSON lines (.jsonl), one object a line")
    if target is not None:
        return _parallel_rows(path, target, names)
    lines = read_lines(path)
    if kind == ".jsonl":
        return _json_rows(lines)
    if kind in TABLES:
        return (_row(*cells) for cells in named_cells(TABLES[kind](lines)))
    return (_text_row(names, line) for line in lines)


def suffix_of(path: Path) -> str:
    """What a file says it holds, in small letters: ``".jsonl"`` of ``A.JSONL.gz``."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return ".jsonl" if suffix == ".ndjson" else suffix


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file in one step, text as UTF-8: a full disk, or a kill, leaves what was there.

    Raises:
        OSError: it cannot be written.
    """
    # Where a name is a link the file behind it is replaced, not the link.
    place = Path(os.path.realpath(file))
    if place.exists() and not place.is_file():
        # A device or a pipe is written to.
        place.write_bytes(_bytes(content))
        return
    with _beside(place, content) as new:
        if place.exists():
            shutil.copymode(place, new)
        os.replace(new, place)


def create_whole(file: Path, text: str) -> None:
    """As :func:`write_whole`, of a file that is not there yet: of several processes that create it at once, one does.

    Raises:
        FileExistsError: it is there.
        OSError: it cannot be written.
    """
    with _beside(file, text) as new:
        try:
            os.link(new, file)
        except FileExistsError:
            raise
        except OSError:  # a disk without links
            if file.exists():
                raise FileExistsError(file) from None
            os.replace(new, file)


@contextmanager
def _beside(place: Path, content: str | bytes) -> Iterator[Path]:
    """A new file of this, which is gone afterwards where it has not been moved."""
    new = place.with_name(f"{place.name}.{os.getpid()}.new")
    try:
        new.write_bytes(_bytes(content))
        yield new
    finally:
        new.unlink(missing_ok=True)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _row(number: int, value: dict[str, Any] | None, error: str | None) -> FileRow:
    return FileRow(f"line {number}", str(number), value, error)


def _json_rows(lines: Iterator[Line]) -> Iterator[FileRow]:
    for line in lines:
        if not line.text.strip():
            continue
        if line.error is not None:
            yield _row(line.number, None, line.error)
            continue
        try:
            value = from_json(line.text)
        except ValueError as error:
            yield _row(line.number, None, str(error))
            continue
        is_object = isinstance(value, dict)
        yield _row(line.number, value if is_object else None, None if is_object else "not a JSON object")


def _parallel_rows(path: Path, target: Path, names: tuple[str, str]) -> Iterator[FileRow]:
    # Whole, because either may be a pipe, and a pair of files that do not belong together should be told at once.
    sources, targets = list(read_lines(path)), list(read_lines(target))
    if len(sources) != len(targets):
        raise InputError(
            f"{path} has {len(sources)} lines and {target} has {len(targets)}; "
            "parallel text needs as many on both sides"
        )
    return (_text_row(names, *pair) for pair in zip(sources, targets, strict=True))


def _text_row(names: tuple[str, str], *lines: Line) -> FileRow:
    wrong = next((line.error for line in lines if line.error is not None), None)
    return _row(lines[0].number, dict(zip(names, (line.text for line in lines), strict=False)), wrong)


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file that is appended to; what a kill left of a last one is cut off the file.

    Raises:
        InputError: the file cannot be read, or not be cut.
    """
    with reading(file):
        content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with writing(file), file.open("r+b") as opened:
            opened.truncate(len(whole))
    return whole.split(b"\n")[:-1]
