"""The contract of what scores tokens, and how the loop lets it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self, cast

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


class Copying(Scorer, Protocol):
    """A scorer whose rows can be copied."""

    def copy(self, rows: Sequence[int]) -> Self | None:
        """Another scorer, which has read the same of these rows; this one stays as it is.

        Args:
            rows: places in the batch.

        Returns:
            None where there are sources beside the text.
        """


def copied(scorer: Scorer, rows: Sequence[int]) -> Scorer | None:
    """A copy of some rows, where the scorer can make one (:class:`Copying`); one that goes on from what another has
    read cannot."""
    copy: Callable[[Sequence[int]], Scorer | None] | None = getattr(scorer, "copy", None)
    return None if copy is None else copy(rows)


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


class Turn(NamedTuple):
    """A row of which a small and a large model play several rounds in one call."""

    tokens: Sequence[int]
    """What is final."""
    halt: Halt
    """Where the small model hands over; the room is what is left of the text."""
    window: int
    """Longest draft, 1…"""
    keeps_doubtful: bool
    """Whether the token that made the small model hand over stays in the draft."""
    limit: float
    """The largest negative log-likelihood under the large model that is kept; what it would write itself always is."""
    sure_of_end: float
    """A draft that ends the text passes unread where all of its tokens are at least this probable."""


class Played(NamedTuple):
    """A round of a row."""

    row: int
    """Its place in the batch."""
    tokens: list[int]
    """What the small model wrote, the token that it doubted included."""
    probabilities: list[float]
    read: int
    """Tokens that the small model read."""
    judged: Judged | None
    """None: the draft passed unread."""


class Judged(NamedTuple):
    """What the large model makes of a draft."""

    accepted: int
    next_token: int
    likeliest: list[int]
    """In each place of the draft, and behind it."""
    distances: list[float]
    """−log p of each drafted token."""
    read: int
    """Tokens that the large model read."""
    is_sound: bool
    """Whether its scores are numbers."""


class Playing(Scorer, Protocol):
    """A scorer that can play rounds against a small model in one call."""

    def plays_with(self, small: Scorer) -> bool:
        """Whether it can, for the rows both have now."""

    def play(self, small: Scorer, turns: Sequence[Turn], most: int, patience_s: float) -> list[Played]:
        """Draft, verify and accept, round after round; both models have then read what the rounds left of the rows.

        Args:
            small: the model that drafts.
            turns: of each row; all end with the same tokens.
            most: rounds, 1…
            patience_s: no round but the first begins later than this.

        Returns:
            The rounds, in order; in each those first that pass unread. After one that is not sound there is none.
            Empty: prompts are too long, and nothing was done.
        """


def playing(scorer: Scorer, small: Scorer) -> Playing | None:
    """The scorer, if it can play rounds against a small one now."""
    plays_with: Callable[[Scorer], bool] | None = getattr(scorer, "plays_with", None)
    return cast(Playing, scorer) if plays_with is not None and plays_with(small) else None


def prepare(scorer: Scorer) -> None:
    """Let a scorer begin with what its first pass needs, if it can do so while others compute."""
    begin = getattr(scorer, "prepare", None)
    if begin is not None:
        begin()


def rolling(scorer: Scorer) -> Rolling | None:
    """The scorer, if it can write several tokens in one call now."""
    return cast(Rolling, scorer) if getattr(scorer, "rolls", False) else None


def passed(scorer: Scorer, wanted: Sequence[int]) -> Sequence[int]:
    """How many passes the next token of each row takes.

    Args:
        scorer: one that scores several tokens in a pass has ``is_told(row)``: whether what follows the next token of a
            row is scored already.
        wanted: 1 for each row that is read, else 0.
    """
    is_told: Callable[[int], bool] | None = getattr(scorer, "is_told", None)
    return wanted if is_told is None else [int(want and not is_told(b)) for b, want in enumerate(wanted)]


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
