"""What drafters that look their tokens up, and have no distribution, have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Self

from bild.decoding.draft import Draft, Writer
from bild.decoding.rows import Row


class Certain:
    """Base of drafters that propose tokens without a model; all they remember of a row is in ``row.memory``."""

    name: Writer = "certain"
    """What its tokens are signed with."""

    def propose(self, row: Row) -> Iterable[int]:
        """What may follow the row's tokens; none: an empty draft. As many as there is room for are taken.

        ``row.tokens`` grows while they are taken.
        """
        raise NotImplementedError

    def proposes(self, row: Row) -> bool:
        """Whether there is something to propose behind a row's tokens, all of which are committed."""
        return next(iter(self.propose(row)), None) is not None

    def draft(self, rows: Sequence[Row], room: Sequence[int]) -> list[Draft]:
        return [self._draft(row, free) for row, free in zip(rows, room, strict=True)]

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        return True

    def truncate(self, lengths: Sequence[int]) -> None:
        """Nothing to forget: only what is committed is remembered."""

    def keep(self, rows: Sequence[int]) -> None:
        """Nothing to do: what is remembered goes with the rows."""

    def join(self, other: Self) -> None:
        """As :meth:`keep`."""

    def _draft(self, row: Row, room: int) -> Draft:
        draft = Draft(writer=self.name, certain=True)
        if room <= 0:
            return draft
        draft.reason = "nothing"
        for token in islice(self.propose(row), room):
            row.tokens.append(token)
            draft.tokens.append(token)
            stops = row.stops()
            draft.reason = "window" if stops is None else stops
            if stops is not None:
                break
        return draft
