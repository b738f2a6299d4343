"""Rows of local data files: JSON lines, tables with a header, plain and parallel text; gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bild.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file, or why there is none."""

    place: str
    """``"line 3"``."""
    id: str
    value: dict[str, Any] | None
    error: str | None = None


def read_rows(path: Path, target: Path | None = None, names: tuple[str, str] = ("source", "target")) -> Iterator[Row]:
    """The rows of a file, by its suffix.

    Args:
        path: ``.jsonl``, ``.csv``, ``.tsv``, or any other text file with one source a line; also ``.gz``.
        target: references of a text file, line by line.
        names: what the columns of a text file are called in its rows.

    Raises:
        InputError: a file that cannot be read, or two of different length.
    """
    kind = (path.with_suffix("") if path.suffix == ".gz" else path).suffix
    if target is not None and kind in (".jsonl", ".csv", ".tsv"):
        raise InputError(f"{path} names its own target column; --target-data goes with a text file")
    data = _read(path)
    if kind == ".jsonl":
        return _json_rows(data)
    if kind in (".csv", ".tsv"):
        return _table_rows(data, path, "," if kind == ".csv" else "\t")
    if kind == ".json":
        raise InputError(f"{path}: a JSON document is not read; give JSON lines (.jsonl), one object a line")
    return _text_rows(data, path, target, names)


def _read(path: Path) -> bytes:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"cannot read {path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _lines(data: bytes) -> list[bytes]:
    # Not str.splitlines: it would also cut at Unicode line separators inside a text.
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def _json_rows(data: bytes) -> Iterator[Row]:
    for number, line in enumerate(_lines(data), 1):
        if not line.strip():
            continue
        try:
            value, error = json.loads(line), None
        except ValueError:
            value, error = None, "not JSON"
        if error is None and not isinstance(value, dict):
            value, error = None, "not a JSON object"
        yield Row(f"line {number}", str(number), value, error)


def _table_rows(data: bytes, path: Path, delimiter: str) -> Iterator[Row]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (at byte {error.start}); convert the file") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for value in reader:
            yield Row(f"line {reader.line_num}", str(reader.line_num), value)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a table ({error})") from None


def _text_rows(data: bytes, path: Path, target: Path | None, names: tuple[str, str]) -> Iterator[Row]:
    sources = _lines(data)
    if target is None:
        return (_text_row(number, names, line) for number, line in enumerate(sources, 1))
    targets = _lines(_read(target))
    if len(sources) != len(targets):
        raise InputError(
            f"{path} has {len(sources)} lines and {target} has {len(targets)}; "
            "parallel text needs as many on both sides"
        )
    return (_text_row(number, names, *pair) for number, pair in enumerate(zip(sources, targets, strict=True), 1))


def _text_row(number: int, names: tuple[str, str], *texts: bytes) -> Row:
    place = f"line {number}"
    try:
        decoded = [text.decode().rstrip("\r") for text in texts]
    except UnicodeDecodeError:
        return Row(place, str(number), None, "not UTF-8")
    return Row(place, str(number), dict(zip(names, decoded, strict=False)))


def whole_lines(file: Path) -> list[bytes]:
    """The lines of a file that is appended to; what a kill left of a last one is cut off the file."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with file.open("r+b") as opened:
            opened.truncate(len(whole))
    return whole.splitlines()
