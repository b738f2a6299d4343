"""How long drafts may be, by how many rows are decoded together.

A shorter draft changes no text of exact match, and no distribution of rejection sampling. Under a rule that is not
lossless it is nearer to the large model's own text, so there the load shows in the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from bild.decoding.commits import Commit
from bild.decoding.goodput import Goodput


class Pace(Protocol):
    """Says how long the drafts of a round may be, and is told what became of it. Has no clock of its own."""

    learns: bool
    """Whether it has to be told of each round by itself."""

    def window(self, rows: int) -> int | None:
        """The longest draft of a round of so many rows; 0: the large model writes alone; None: as the policies say."""

    def learn(self, rows: int, window: int | None, commits: Sequence[Commit], seconds: float) -> None:
        """Take a round into account.

        Args:
            rows: that were decoded together.
            window: that was allowed, as :meth:`window` said.
            commits: of the round.
            seconds: that it took.
        """


class Fixed:
    """Drafts are as long as each row's policy says, whatever the load."""

    learns = False

    def window(self, rows: int) -> int | None:
        return None

    def learn(self, rows: int, window: int | None, commits: Sequence[Commit], seconds: float) -> None:
        """Nothing to learn."""


class Table:
    """Drafts by a table that somebody has measured.

    Args:
        windows: longest draft, 0…, from so many rows on, 1…. With fewer rows than the first has, as the policies say.

    Raises:
        ValueError: an empty table, or a number out of range.
    """

    learns = False

    def __init__(self, windows: Mapping[int, int]) -> None:
        if not windows or min(windows) < 1 or min(windows.values()) < 0:
            raise ValueError(f"the table is {dict(windows)}; allowed are rows from 1, each with a window from 0")
        self.windows = dict(sorted(windows.items()))

    def window(self, rows: int) -> int | None:
        below = [window for least, window in self.windows.items() if least <= rows]
        return below[-1] if below else None

    def learn(self, rows: int, window: int | None, commits: Sequence[Commit], seconds: float) -> None:
        """Nothing to learn."""


def parse_pace(text: str) -> Pace:
    """Read ``"fixed"``, ``"goodput"``, or ``"table:ROWS=WINDOW,…"`` as in ``"table:1=10,4=3,8=0"``.

    Raises:
        ValueError: text of another form.
    """
    kind, _, table = text.partition(":")
    if text == "fixed":
        return Fixed()
    if text == "goodput":
        return Goodput()
    try:
        if kind != "table":
            raise ValueError
        pairs = [entry.split("=") for entry in table.split(",")]
        windows = {int(rows): int(window) for rows, window in pairs}
    except ValueError:
        raise ValueError(
            f"pace is {text!r}; allowed are fixed, goodput, and table:ROWS=WINDOW,… as in table:1=10,4=3,8=0"
        ) from None
    return Table(windows)
