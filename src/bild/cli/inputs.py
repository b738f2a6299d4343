"""Lines of text from arguments, a file or stdin, each with where it came from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bild.errors import InputError


@dataclass(frozen=True)
class Line:
    """One input, or why there is none."""

    place: str
    """``"line 3"`` of a file, or ``"text 1"`` of the arguments."""
    text: str = ""
    error: str | None = None


def read_lines(texts: list[str] | None, file: str | None) -> tuple[Iterator[Line], int | None]:
    """The inputs, and how many there are if that is known without waiting.

    Args:
        texts: from the command line.
        file: a path, ``-`` for stdin; stdin too where nothing is named and it is not a terminal.

    Raises:
        InputError: nothing to read, or both ways at once.
    """
    if texts and file is not None:
        raise InputError("give texts or --input, not both")
    if texts:
        return (Line(f"text {number}", text) for number, text in enumerate(texts, 1)), len(texts)
    if file is None and sys.stdin.isatty():
        raise InputError("nothing to decode; give texts, --input FILE, or a pipe")
    if file in (None, "-"):
        return _decoded(sys.stdin.buffer), None
    lines = _read_file(Path(file))
    return _decoded(lines), len(lines)


def _read_file(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _decoded(lines: Iterable[bytes]) -> Iterator[Line]:
    for number, raw in enumerate(lines, 1):
        place = f"line {number}"
        try:
            yield Line(place, raw.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            yield Line(place, error=f"not UTF-8 (byte {raw[error.start]:#04x} at {error.start}); convert the file")
