"""A model in between: it judges what is drafted below, and what stands is the draft of the level above.

Hierarchical speculative decoding (arXiv 2510.19705), PyramidSD (arXiv 2510.12966) and the chain of staged speculative
decoding (arXiv 2308.04623) are this one drafter under different rules; the loop knows nothing of it. Nested, it makes
a cascade of any height.

Where the middle model's rule is lossless, its tokens, kept, replaced and added ones alike, are draws from its own
distribution, whatever was drafted below. So that is what rejection sampling above compares with.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor

from bild.decoding.acceptance import Reading
from bild.decoding.draft import Draft, Work, Writer
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.drafters.several import merged
from bild.decoding.grouping import Group
from bild.decoding.rows import Row
from bild.decoding.scorer import Scorer
from bild.decoding.verdict import Verdict, learner
from bild.decoding.verifier import LocalVerifier

DEFAULT_WINDOW = 4


class Cascade:
    """Lets a model judge short drafts, again and again, until it has as many tokens as there is room for.

    It judges by the rule of the row's policy, or by the policy's ``qualifier`` where there is one. The model below is
    unsure by the same rule as ever; its doubt ends its own short draft only.

    Rules and drafters below learn from the middle model's verdicts where tokens are not drawn. Where they are they
    learn nothing: the level above may throw away what was judged here, and its random numbers would be used again.

    Args:
        scorer: the model that judges.
        drafter: proposes to it.
        window: longest draft that it is given, in tokens, 1…; how many it collects says the policy.
        name: what the tokens it writes itself are signed with.
        level: whose random numbers decide, 1 for the first level below the large model, 2 for the next, …: two tests
            at one position need two independent numbers.

    Raises:
        ValueError: window below 1.
    """

    def __init__(
        self,
        scorer: Scorer,
        drafter: Drafter,
        window: int = DEFAULT_WINDOW,
        name: Writer = "middle",
        level: int = 1,
    ) -> None:
        if window < 1:
            raise ValueError(f"middle_window is {window}; allowed is 1 or more")
        self.judge, self.drafter, self.window = Judge(scorer, name, level), drafter, window
        self.name = name

    def draft(self, rows: Sequence[Row], room: Sequence[int]) -> list[Draft]:
        below, drafts = [_below(row) for row in rows], [Draft(writer=self.name) for _ in rows]
        for row, draft in zip(rows, drafts, strict=True):
            above = row.rules.acceptance
            # Tokens that are no draws from the middle model's distribution are nobody's draws.
            draft.certain = above.lossless and not row.rules.below.acceptance.lossless
        while any(missing := [_missing(*each) for each in zip(drafts, room, strict=True)]):
            self._round(rows, below, drafts, missing)
        return drafts

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        return all([self.judge.read(rows, limit), self.drafter.read(rows, limit)])

    def truncate(self, lengths: Sequence[int]) -> None:
        self.judge.truncate(lengths)
        self.drafter.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        self.judge.keep(rows)
        self.drafter.keep(rows)

    def join(self, other: Cascade) -> None:
        self.judge.join(other.judge)
        self.drafter.join(other.drafter)

    def _round(
        self, rows: Sequence[Row], below: Sequence[Row], drafts: Sequence[Draft], missing: Sequence[int]
    ) -> None:
        """One more round of every row that has room: short draft, verdict, and what stands joins the draft."""
        short = self.drafter.draft(below, [min(self.window, each) for each in missing])
        asked = [draft if room else None for draft, room in zip(short, missing, strict=True)]
        verdicts = self.judge.verify(below, asked)
        for b, (row, proposal, verdict) in enumerate(zip(below, asked, verdicts, strict=True)):
            if proposal is not None and verdict is not None:
                added = self._add(row, drafts[b], proposal, verdict, missing[b])
                if rows[b].rules.acceptance.needs_draft_logits and not drafts[b].certain:
                    drafts[b].logits += list(self.judge.logits[b][:added])
                self._teach(row, proposal, verdict)
        # Nobody has read the last token, which is what the next one is asked from.
        self.truncate([len(row.tokens) - 1 for row in below])

    def _add(self, row: Row, draft: Draft, proposal: Draft, verdict: Verdict, room: int) -> int:
        """Take over what stands of a proposal, and the middle model's own token where there is room; how many."""
        accepted, count = verdict.accepted, len(proposal.tokens)
        del row.tokens[len(row.tokens) - count + accepted :]
        tokens, writers = proposal.tokens[:accepted], proposal.signed(accepted)
        draft.work = merged(draft.work, merged(proposal.work, {self.name: verdict.work}))
        if proposal.closes and accepted == count:
            draft.reason = proposal.reason
        elif accepted < room:
            row.tokens.append(verdict.next_token)
            tokens, writers = [*tokens, verdict.next_token], [*writers, self.name]
            draft.reason = row.stops()
        if draft.reason is None and len(tokens) == room:
            draft.reason = "window"
        draft.tokens += tokens
        draft.writers += writers
        return len(tokens)

    def _teach(self, row: Row, proposal: Draft, verdict: Verdict) -> None:
        if row.rules.choice.draws:
            return
        for part in (learner(row.rules.hand_over), learner(self.drafter)):
            if part is not None:
                part.learn(row, proposal, verdict)


class Judge(LocalVerifier):
    """A verifier that also keeps the distributions it judged by.

    Args:
        scorer: the model.
        name: what the tokens it writes are signed with.
        level: see :class:`Cascade`.
    """

    def __init__(self, scorer: Scorer, name: Writer, level: int) -> None:
        super().__init__(scorer, name, level)
        self.logits: dict[int, Tensor] = {}
        """Of each row of the last call ``[draft + 1, V]``."""

    def _judge(
        self,
        group: Group,
        reading: Reading,
        rows: Sequence[Row],
        work: Sequence[Work],
        verdicts: list[Verdict | None],
    ) -> None:
        super()._judge(group, reading, rows, work, verdicts)
        for at, (b, count) in enumerate(zip(group.members, reading.counts, strict=True)):
            if count:
                self.logits[b] = reading.logits[at, -count:]


def _missing(draft: Draft, room: int) -> int:
    """How many tokens it may still get."""
    return room - len(draft.tokens) if draft.reason is None else 0


def _below(row: Row) -> Row:
    """The same row, its tokens and its memory included, under the rules of the level below."""
    view = copy.copy(row)
    view.rules = row.rules.below
    return view
