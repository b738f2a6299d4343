"""A text that is known before, as an earlier translation of a source that has grown."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from bild.decoding.drafters.certain import Certain
from bild.decoding.rows import Row

ANCHOR = 3
"""Tokens by which the place in the text is found again."""


@dataclass(slots=True)
class Place:
    """How far a row has followed its text."""

    seen: int
    """Tokens of the row that were compared."""
    at: int | None = 0
    """The next token of the text; None: the row has left it."""
    furthest: int = 0
    """The place that was left."""
    ends: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    """Where each n-gram of the text ends, ascending."""


class Replay(Certain):
    """Proposes the text given for each row, as long as what is committed follows it.

    Args:
        texts: token ids by ``row.index``; a row without one gets empty drafts.
        realign: whether the place is looked for again after a divergence: where the row's last three tokens stand
            further on in the text. Ours.
    """

    name = "replay"

    def __init__(self, texts: Mapping[int, Sequence[int]] | Sequence[Sequence[int]], realign: bool = True) -> None:
        self.texts = texts if isinstance(texts, Mapping) else dict(enumerate(texts))
        self.realign = realign

    def propose(self, row: Row) -> Sequence[int]:
        text = self.texts.get(row.index, ())
        at = self._follow(row, text)
        if at is None:
            return ()
        # Beneath a model in between, some of the row's tokens are not committed yet.
        drafted = row.tokens[row.committed :]
        return text[at + len(drafted) :] if list(text[at : at + len(drafted)]) == drafted else ()

    def join(self, other: Self) -> None:
        self.texts = {**self.texts, **other.texts}

    def _follow(self, row: Row, text: Sequence[int]) -> int | None:
        """Compare what was committed since, and where the row is in its text now."""
        place: Place = row.memory.setdefault(self.name, Place(row.prompt_length))
        for token in row.tokens[place.seen : row.committed]:
            if place.at is not None and place.at < len(text) and text[place.at] == token:
                place.at += 1
            elif place.at is not None:
                place.furthest, place.at = place.at, None
        place.seen = row.committed
        if place.at is None and self.realign and row.committed - row.prompt_length >= ANCHOR:
            place.at = self._again(place, row, text)
        return place.at

    def _again(self, place: Place, row: Row, text: Sequence[int]) -> int | None:
        if not place.ends:
            for end in range(ANCHOR, len(text) + 1):
                place.ends.setdefault(tuple(text[end - ANCHOR : end]), []).append(end)
        ends = place.ends.get(tuple(row.tokens[row.committed - ANCHOR : row.committed]), [])
        # What lies before has been written.
        next_one = bisect_left(ends, place.furthest)
        return ends[next_one] if next_one < len(ends) else None
