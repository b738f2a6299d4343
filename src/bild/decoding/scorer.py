"""The contract of what scores tokens, and how the loop lets it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, Self, cast

from torch import Tensor

from bild.decoding.rows import Halt, Row
from bild.decoding.scores import Scores, Summary


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
        """As :meth:`extend`, the logits at least in float32, and their summary.

        A model that has nothing better to offer gives ``Scores.of(self.extend(tokens, last))``.
        """

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget everything after ``lengths[b]`` tokens of row ``b``; no-op where shorter."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows (indices into the present batch), in this order; one may be named more than once."""

    def join(self, other: Self) -> None:
        """Go on with another scorer's rows behind these; it is used up.

        Both are of the same model. Either may have read anything, nothing included; ``lengths`` becomes
        ``self.lengths + other.lengths``.
        """


Take = Callable[[int, int, float], bool]
"""Of a row, the token it has written and its probability: whether the row goes on."""


class Rolling(Scorer, Protocol):
    """A scorer that can write several of its likeliest tokens in one call."""

    @property
    def rolls(self) -> bool:
        """Whether it can, for the rows it has now."""

    def roll(self, tokens: Sequence[Sequence[int]], most: int, take: Take, halts: Sequence[Halt | None]) -> list[int]:
        """Read new tokens, then go on with the likeliest token; all that is taken but the last is read, too.

        Args:
            tokens: as for :meth:`extend`; a row that gets none stays as it is.
            most: tokens a row may write, 1…
            take: told every token that a row writes, in order; says whether the row goes on.
            halts: where ``take`` will say that a row does not, as far as that is known before.

        Returns:
            Passes that served each row.
        """


def prepare(scorer: Scorer) -> None:
    """Let a scorer begin with what its first pass needs, if it can do so while others compute."""
    begin = getattr(scorer, "prepare", None)
    if begin is not None:
        begin()


def rolling(scorer: Scorer) -> Rolling | None:
    """The scorer, if it can write several tokens in one call now."""
    return cast(Rolling, scorer) if getattr(scorer, "rolls", False) else None


def unread(scorer: Scorer, rows: Sequence[Row], wanted: Sequence[int]) -> list[list[int]]:
    """What a model has not read of each row; nothing of a row that is not wanted."""
    lengths = scorer.lengths
    return [row.tokens[lengths[b] :] if count else [] for b, (row, count) in enumerate(zip(rows, wanted, strict=True))]


def read(scorer: Scorer, rows: Sequence[Row], counts: Sequence[int]) -> Scores:
    """Let a model read what it has not, and score the last ``counts[b]`` positions of each row.

    Args:
        scorer: the model.
        rows: of its batch.
        counts: positions a row; 0: the row is not read.

    Returns:
        The model's own scores ``[B, max(counts), V]``, right-aligned; each row's processor is still to be applied.
    """
    return Scores(*scorer.summarize(unread(scorer, rows, counts), last=max(counts)))


class Reader:
    """One side of the loop: what drafting and verifying do alike with the model they read with.

    Args:
        scorer: the model.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        """Read at most ``limit`` prompt tokens of each row, all but the last; True when no row has more.

        The last one is read when what follows it is asked for.
        """
        scorer = self.scorer
        ends = [min(length + limit, row.prompt_length - 1) for row, length in zip(rows, scorer.lengths, strict=True)]
        prompts = [row.tokens[length:end] for row, length, end in zip(rows, scorer.lengths, ends, strict=True)]
        if any(prompts):
            scorer.extend(prompts)
        return all(length >= row.prompt_length - 1 for row, length in zip(rows, scorer.lengths, strict=True))

    def truncate(self, lengths: Sequence[int]) -> None:
        self.scorer.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        # Where nobody goes on there is nothing to go on with; what was read is let go with the scorer.
        if rows:
            self.scorer.keep(rows)

    def join(self, other: Self) -> None:
        self.scorer.join(other.scorer)
