"""The two contracts the loop rests on: who scores tokens, and who proposes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from bild.decoding.rows import Row

HandOverReason = Literal["unsure", "window", "end"]
Summarize = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""Tokens and how many positions to score, to logits, likeliest tokens and their probabilities."""


class Scorer(Protocol):
    """A model that has read a prefix of each row of a batch.

    One that knows more may also offer ``summarize(tokens, last)``: as ``extend``, and beside the logits, at
    least float32, the likeliest token of each position and its probability, each ``[B, last]``.
    """

    @property
    def lengths(self) -> list[int]:
        """Tokens read so far, one absolute count a row."""

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        """Read each row's new tokens and score what may follow.

        Args:
            tokens: one list of new token ids a row; a row may get none, not all may.
            last: how many trailing positions to score, at least 1.

        Returns:
            Next-token logits ``[B, last, V]``, right-aligned: ``[b, -1]`` follows the last
            token row ``b`` has just been given, ``[b, -2]`` the one before. Positions before
            the row's first new token hold no meaning.
        """

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget everything after ``lengths[b]`` tokens of row ``b``; no-op where shorter."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only (indices into the present batch, ascending)."""


@dataclass(slots=True)
class Draft:
    """What a drafter proposed for one row: tokens nobody has judged yet."""

    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    """Confidence of each kept token, then of the dropped one if there is one; empty where not measured."""
    logits: list[Tensor] = field(default_factory=list)
    """What each kept token was picked from ``[V]``; empty where the acceptance rule does not ask."""
    reason: HandOverReason | None = None
    """Why the turn was handed over; None when there is no drafter."""
    doubtful: int | None = None
    """The token that made the drafter hand over, if it was dropped."""
    steps: int = 0
    """Forward passes of the small model that served this row."""


class Drafter(Protocol):
    """Proposes tokens for each row."""

    def draft(self, rows: Sequence[Row]) -> list[Draft]:
        """Append a draft to ``row.tokens`` of every row and describe it."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """As :meth:`Scorer.truncate`."""

    def keep(self, rows: Sequence[int]) -> None:
        """As :meth:`Scorer.keep`."""
