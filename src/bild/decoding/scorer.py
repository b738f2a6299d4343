"""The two contracts the loop rests on: who scores tokens, and who proposes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, Self

from torch import Tensor

from bild.decoding.rows import Row, process, processes

HandOverReason = Literal["unsure", "window", "end"]


class Summary:
    """What matters most of next-token logits ``z`` ``[B, K, V]``; every field ``[B, K]``.

    Args:
        likeliest: the token of the highest logit, the first of equals.
        probability: its probability.
        log_total: ``log Σ exp z``, so that ``log p(x) = z(x) − log_total``.
    """

    def __init__(self, likeliest: Tensor, probability: Tensor, log_total: Tensor) -> None:
        self.likeliest, self.probability, self.log_total = likeliest, probability, log_total

    @staticmethod
    def of(logits: Tensor) -> Summary:
        """Of logits, at least float32; each field is computed when it is first asked for."""
        return _Lazy(logits)


class _Lazy(Summary):
    def __init__(self, logits: Tensor) -> None:
        self._logits = logits

    @cached_property
    def likeliest(self) -> Tensor:  # type: ignore[override]
        return self._logits.argmax(-1)

    @cached_property
    def probability(self) -> Tensor:  # type: ignore[override]
        return (self._logits.amax(-1) - self.log_total).exp()

    @cached_property
    def log_total(self) -> Tensor:  # type: ignore[override]
        return self._logits.logsumexp(-1)


class Scorer(Protocol):
    """A model that has read a prefix of each row of a batch."""

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

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        """As :meth:`extend`, and beside the logits, at least float32, their :class:`Summary`."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget everything after ``lengths[b]`` tokens of row ``b``; no-op where shorter."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows (indices into the present batch), which may be repeated and come in any order."""

    def join(self, other: Self) -> None:
        """Go on with another scorer's rows behind these; it is used up.

        Both are of the same model; either may have read anything, nothing included.
        """


def score(
    scorer: Scorer, rows: Sequence[Row], tokens: Sequence[Sequence[int]], counts: Sequence[int]
) -> tuple[Tensor, Summary | None]:
    """Read new tokens and score the last ``counts[b]`` positions of each row.

    Returns:
        Logits ``[B, max(counts), V]`` as :func:`~bild.decoding.rows.process` leaves them, and their summary where
        the scorer offers one and nothing changes the logits.
    """
    if processes(rows):
        return process(rows, scorer.extend(tokens, last=max(counts)), counts), None
    return scorer.summarize(tokens, last=max(counts))


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
