"""The first of several drafters that proposes something."""

from __future__ import annotations

from collections.abc import Sequence

from bild.decoding.draft import Draft
from bild.decoding.drafters.several import Several, after
from bild.decoding.history import History
from bild.decoding.rows import Row
from bild.decoding.verdict import Verdict


class First(Several):
    """Asks its drafters in order, and takes the first draft that is not empty.

    Of empty drafts the last that has another reason than ``"nothing"`` counts, so that a small model's doubt is
    not forgotten.

    Args:
        drafters: the cheapest first, as a rule; at least one.
    """

    def draft(self, rows: Sequence[Row], room: Sequence[int]) -> list[Draft]:
        drafts = self.drafters[0].draft(rows, room)
        wrote = [0] * len(rows)
        for at, drafter in enumerate(self.drafters[1:], start=1):
            left = [0 if draft.tokens else free for draft, free in zip(drafts, room, strict=True)]
            if not any(left):
                break
            for b, then in enumerate(drafter.draft(rows, left)):
                if left[b]:
                    wrote[b] = at if then.reason != "nothing" else wrote[b]
                    drafts[b] = after(drafts[b], then)
        for row, at in zip(rows, wrote, strict=True):
            row.memory[self.key] = at
        return drafts

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        self.teach(row.memory.get(self.key, 0), row, draft, verdict)
