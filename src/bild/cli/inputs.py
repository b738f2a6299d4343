"""Texts from arguments, a file or stdin, each with where it came from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bild.data.lines import Line, count_lines, lines_of, problem, read_lines
from bild.errors import InputError, reading


@dataclass(frozen=True, slots=True)
class Source:
    """One text to decode, or why it cannot be."""

    place: str
    """``"line 3"`` of a file, or ``"text 1"`` of the arguments."""
    text: str
    error: str | None = None
    keeps_line: bool = False
    """Whether line n of the results belongs to it: an empty line then stays one, and so does one that fails."""

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing to decode and nothing wrong with that."""
        return self.keeps_line and self.error is None and not self.text.strip()


def read_sources(texts: list[str] | None, file: str | None) -> tuple[Iterator[Source], int | None]:
    """The texts, as they are asked for, and how many there are if that is known without waiting.

    Args:
        texts: from the command line.
        file: a path, ``-`` for stdin; stdin too where nothing is named and it is not a terminal.

    Raises:
        InputError: nothing to read, or both ways at once, or a file that cannot be read.
    """
    if texts and file is not None:
        raise InputError("give texts or --input, not both")
    if texts:
        check_texts(**{f"text {number}": [text] for number, text in enumerate(texts, 1)})
        return (Source(f"text {number}", text) for number, text in enumerate(texts, 1)), len(texts)
    if file in (None, "-"):
        # Python has no stdin where the shell closed it.
        if sys.stdin is None or (file is None and sys.stdin.isatty()):
            raise InputError("nothing to decode; give texts, --input FILE, or a pipe")
        return _sources(lines_of(sys.stdin.buffer, "stdin")), None
    assert file is not None
    path = Path(file)
    with reading(path):
        # A pipe can be read once only.
        total = count_lines(path) if path.is_file() else None
    return _sources(read_lines(path)), total


def read_texts(file: str, purpose: str) -> list[str]:
    """The texts of a file, or of stdin, without empty lines; lines that cannot be used are passed over and told.

    Args:
        file: a path, ``-`` for stdin.
        purpose: what the texts are for, for the error message: ``"to record"``.

    Raises:
        InputError: a file that cannot be read, or holds no text.
    """
    sources = list(read_sources(None, file)[0])
    for source in sources:
        if source.error is not None:
            print(f"{source.place} is passed over: {source.error}", file=sys.stderr)
    texts = [source.text for source in sources if source.error is None and source.text.strip()]
    if not texts:
        raise InputError(f"{file} holds no text {purpose}; give one text a line")
    return texts


def check_texts(**given: str | list[str] | None) -> None:
    """Refuse options that are no text: the shell hands on whatever bytes it is given.

    Raises:
        InputError: an option that cannot be decoded, by its name.
    """
    for name, value in given.items():
        for text in [value] if isinstance(value, str) else ([] if value is None else value):
            wrong = problem(text)
            if wrong is not None:
                raise InputError(f"{name.replace('_', '-')}: {wrong}")


def _sources(lines: Iterable[Line]) -> Iterator[Source]:
    return (Source(f"line {line.number}", line.text, line.error, keeps_line=True) for line in lines)
