"""One text that both sides of an early exit read: two Scorers over the layers below and the layers above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from bild.decoding.scorer import Copying, Scorer
from bild.decoding.scores import Summary
from bild.models.passes import check_last

Tokens = Sequence[Sequence[int]]


class LowerScorer(Copying, Protocol):
    """The layers below the exit, with the norm and the head; keeps the hidden states of what it has read."""

    def follow(self, tokens: Tokens) -> None:
        """Read new tokens and score none."""


class UpperScorer(Copying, Protocol):
    """The layers above the exit."""

    def above(self, lower: Any) -> None:
        """Read the hidden states of these layers from now on."""


class SplitScorer:
    """The whole network in two pieces; see :class:`bild.decoding.Scorer`.

    The layers below have read at least as far as the layers above. What they have read beyond, because the
    small model did, is not computed again.

    Args:
        lower: the layers below.
        upper: the layers above, reading the hidden states of ``lower``.
    """

    def __init__(self, lower: LowerScorer, upper: UpperScorer) -> None:
        self._lower, self._upper = lower, upper
        self._alone = True

    def share(self) -> ExitScorer:
        """The small model's side of this batch."""
        self._alone = False
        return ExitScorer(self._lower, self._upper)

    @property
    def lengths(self) -> list[int]:
        return self._upper.lengths

    def extend(self, tokens: Tokens, last: int = 1) -> Tensor:
        self._follow(tokens, last)
        return self._upper.extend(tokens, last)

    def summarize(self, tokens: Tokens, last: int = 1) -> tuple[Tensor, Summary]:
        self._follow(tokens, last)
        return self._upper.summarize(tokens, last)

    def _follow(self, tokens: Tokens, last: int) -> None:
        """Let the layers below read what they have not."""
        check_last(tokens, last)
        ahead = [below - above for below, above in zip(self._lower.lengths, self._upper.lengths, strict=True)]
        unread = [row[count:] for row, count in zip(tokens, ahead, strict=True)]
        if any(unread):
            self._lower.follow(unread)

    def truncate(self, lengths: Sequence[int]) -> None:
        self._lower.truncate(lengths)
        self._upper.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        self._upper.keep(rows)
        # Else the small model's side is told likewise.
        if self._alone:
            self._lower.keep(rows)

    def join(self, other: SplitScorer) -> None:
        self._upper.join(other._upper)
        if self._alone:
            self._lower.join(other._lower)

    def copy(self, rows: Sequence[int]) -> SplitScorer | None:
        """See :class:`~bild.decoding.scorer.Copying`; the small model's side is shared anew."""
        lower, upper = self._lower.copy(rows), self._upper.copy(rows)
        if lower is None or upper is None:
            return None
        upper.above(lower)
        return SplitScorer(lower, upper)


class ExitScorer:
    """The layers below as the small model of a :class:`SplitScorer`; see :class:`bild.decoding.Scorer`.

    There is one text: what one side forgets, the other forgets too. Rows must be kept, and joined, on both sides.
    """

    def __init__(self, lower: LowerScorer, upper: Scorer) -> None:
        self._lower, self._upper = lower, upper
        self.extend, self.summarize = lower.extend, lower.summarize

    @property
    def lengths(self) -> list[int]:
        return self._lower.lengths

    def truncate(self, lengths: Sequence[int]) -> None:
        self._lower.truncate(lengths)
        self._upper.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        self._lower.keep(rows)

    def join(self, other: ExitScorer) -> None:
        self._lower.join(other._lower)
