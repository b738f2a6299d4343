"""What the large model says of one row's draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from bild.decoding.draft import NO_WORK, Draft, Work, Writer
from bild.decoding.history import History
from bild.decoding.likelihood import Scored


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the large model says of one row's draft."""

    accepted: int
    """How many of its tokens stay."""
    next_token: int
    """What the large model writes behind them."""
    distances: tuple[float, ...]
    """``d(p_S, p_L)`` of each draft token."""
    likeliest: tuple[int, ...]
    """The large model's likeliest token at each draft position, and behind the draft."""
    writer: Writer = "large"
    """Who wrote the next token."""
    work: Work = NO_WORK
    """Of the large model."""
    scored: tuple[Scored, ...] = ()
    """How likely each draft token was, then the next token; empty unless the request asks."""

    def agreed(self, draft: Draft) -> list[bool]:
        """Whether each draft token up to the first rejected one is the large model's likeliest."""
        judged = range(min(self.accepted + 1, len(draft.tokens)))
        return [draft.tokens[i] == self.likeliest[i] for i in judged]


@runtime_checkable
class Learner(Protocol):
    """A rule or a drafter that takes into account what became of its drafts."""

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        """Take a round of a row into account.

        A rule that may stand beside a lossless one looks only at positions up to the first rejected one: the
        random numbers of later positions will be used again.
        """


_learns: dict[type, bool] = {}


def learner(part: object) -> Learner | None:
    """A rule or drafter as a :class:`Learner`; None where it is none."""
    kind = type(part)
    if kind not in _learns:
        # Asked in every round: looking through a class for a protocol's members takes longer than a small layer.
        _learns[kind] = isinstance(part, Learner)
    return cast(Learner, part) if _learns[kind] else None
