"""The contract of a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

from bild.decoding.draft import Draft
from bild.decoding.rows import Row


class Drafter(Protocol):
    """Proposes tokens for each row of a batch.

    One that also has ``learn(row, draft, verdict)`` is told what became of each of its drafts
    (:class:`~bild.decoding.verdict.Learner`). One with ``proposes(row)``, which says whether there is something to
    propose behind tokens that are all committed, lets the large model write on as long as there is not.
    """

    def draft(self, rows: Sequence[Row], room: Sequence[int]) -> list[Draft]:
        """Append a draft to ``row.tokens`` of every row and describe it.

        After each token ``row.stops()`` is asked, and a draft that ends the text, or a segment that a reward judges,
        stops there with this reason: only a draft's last token may end the text.

        Args:
            rows: of the batch.
            room: how many tokens each row's draft may have. 0: the row is not looked at, its draft is empty and
                has no reason.
        """

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        """Read at most ``limit`` prompt tokens of each row; True once all rows can be drafted at once."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget everything after ``lengths[b]`` tokens of row ``b``; no-op where shorter."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one may be named more than once."""

    def join(self, other: Self) -> None:
        """Go on with another drafter's rows behind these; it is used up."""
