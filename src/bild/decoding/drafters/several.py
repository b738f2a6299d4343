"""What drafters that are made of others have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bild.decoding.draft import NO_WORK, Draft, Work
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.history import History
from bild.decoding.rows import Row
from bild.decoding.verdict import Learner, Verdict


class Several:
    """Drafters side by side; each catches up by itself when it is asked again.

    Args:
        drafters: at least one.

    Raises:
        ValueError: none.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        if not drafters:
            raise ValueError("a drafter of several is made of at least one, got none")
        self.drafters = list(drafters)
        self.key = (type(self).__name__, tuple(getattr(each, "key", type(each).__name__) for each in drafters))
        """By which a row remembers it: the same in another batch, whose drafters are other objects."""

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        return all([each.read(rows, limit) for each in self.drafters])

    def truncate(self, lengths: Sequence[int]) -> None:
        for each in self.drafters:
            each.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        for each in self.drafters:
            each.keep(rows)

    def join(self, other: Several) -> None:
        for own, more in zip(self.drafters, other.drafters, strict=True):
            own.join(more)

    def teach(self, at: int, row: History, draft: Draft, verdict: Verdict) -> None:
        """Tell one of the drafters what became of its draft."""
        drafter = self.drafters[at]
        if isinstance(drafter, Learner):
            drafter.learn(row, draft, verdict)


def merged(work: dict[str, Work], more: dict[str, Work]) -> dict[str, Work]:
    """The work of two drafters."""
    both = dict(work)
    for name, done in more.items():
        before = both.get(name, NO_WORK)
        both[name] = Work(before.steps + done.steps, before.read + done.read)
    return both


def after(first: Draft, then: Draft) -> Draft:
    """What is left of an empty draft and the one of the drafter that was asked next; all their work counts."""
    told = first if then.reason == "nothing" else then
    return replace(told, work=merged(first.work, then.work))
