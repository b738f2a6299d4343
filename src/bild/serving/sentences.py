"""A text cut into sentences and what stands between them; joined, the pieces are the text again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

END = re.compile(r"[.!?…][\"'”»“’)\]]{0,3}(\s+)(?=[\"'„«»“‘(\[¿¡]{0,3}[^\W_a-zß-öø-ÿ])")
"""The end of a sentence, the space behind it, and a capital letter or a number to come."""
WORD = re.compile(r"(\w+)\.[\"'”»“’)\]]*\s*$")
BACK = 32
"""Letters before an end that are looked at."""
SHORT = frozenset(
    """
    vgl bzw ca dr prof hr fr nr st str tel bd usw etc evtl ggf inkl zzgl abs jan feb mär apr jun jul aug sep sept okt
    nov dez mr mrs ms jr sr vs inc ltd co fig vol pp approx dept est gen rev
    """.split()  # noqa: SIM905
)
"""What ends in a full stop and ends no sentence."""


class Piece(NamedTuple):
    """A part of a text."""

    text: str
    said: bool
    """Whether it is a sentence; else it stands between two, and stays as it is."""


def cut(text: str) -> list[Piece]:
    """The sentences of a text, line by line, and what is between them."""
    return [piece for line in text.splitlines(keepends=True) for piece in _line(line) if piece.text]


def _line(line: str) -> Iterator[Piece]:
    said = line.strip()
    if not said:
        yield Piece(line, False)
        return
    start = line.index(said)
    yield Piece(line[:start], False)
    yield from _sentences(said)
    yield Piece(line[start + len(said) :], False)


def _sentences(said: str) -> Iterator[Piece]:
    start = 0
    for found in END.finditer(said):
        if not _abbreviates(said[max(start, found.start(1) - BACK) : found.start(1)]):
            yield Piece(said[start : found.start(1)], True)
            yield Piece(found.group(1), False)
            start = found.end(1)
    yield Piece(said[start:], True)


def _abbreviates(before: str) -> bool:
    """Whether a text ends in a full stop that belongs to a word: an abbreviation, an initial, or "3." of a date."""
    found = WORD.search(before)
    if found is None:
        return False
    word = found.group(1)
    return len(word) == 1 or (word.isdigit() and len(word) < 3) or word.lower() in SHORT
