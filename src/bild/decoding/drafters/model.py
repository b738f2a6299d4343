"""The small model as a drafter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bild.decoding.choice import Greedy
from bild.decoding.draft import ENDS, Draft, Work, Writer
from bild.decoding.grouping import Group, groups
from bild.decoding.hand_over import HandOver, LooksAt
from bild.decoding.rows import Row, Rules
from bild.decoding.scorer import Reader, Rolling, Scorer, read, rolling, unread
from bild.decoding.transfer import to_host

AT_ONCE = 4
"""Tokens that are written before it is looked whether the model hands over, where it can write without: those behind
the hand-over are lost, but looking makes a GPU wait for longer than a step of a small model takes."""


class ModelDrafter(Reader):
    """Writes with the small model until it is unsure, its room is used, or the text ends.

    Each row's rules say when it is unsure and how it picks a token.

    Args:
        scorer: the small model.
        name: what the tokens it wrote are signed with.
        level: whose random numbers decide when tokens are drawn, see
            :meth:`~bild.decoding.history.History.uniform`; 0, those of the large model, so that models that
            agree draw the same token.
    """

    def __init__(self, scorer: Scorer, name: Writer = "small", level: int = 0) -> None:
        super().__init__(scorer)
        self.name, self.level = name, level

    def draft(self, rows: Sequence[Row], room: Sequence[int]) -> list[Draft]:
        drafts = [Draft(writer=self.name) for _ in rows]
        steps, before = [0] * len(rows), self.scorer.lengths
        together = groups(rows, alike)
        scorer = rolling(self.scorer) if all(map(_may_roll, together)) else None
        while any(writing := [int(free > 0 and each.reason is None) for free, each in zip(room, drafts, strict=True)]):
            if scorer is not None:
                passes = _roll(scorer, rows, room, drafts, writing)
            else:
                passes = 1
                self._step(rows, room, drafts, writing, together)
            steps = [count + passes * more for count, more in zip(steps, writing, strict=True)]
        for draft, count, first, last in zip(drafts, steps, before, self.scorer.lengths, strict=True):
            draft.work = {self.name: Work(count, last - first)} if count else {}
        return drafts

    def _step(
        self,
        rows: Sequence[Row],
        room: Sequence[int],
        drafts: Sequence[Draft],
        writing: Sequence[int],
        together: Sequence[Group],
    ) -> None:
        """One more token of every row that writes; each group's are brought to the host in one transfer."""
        scores = read(self.scorer, rows, writing)
        for group in together:
            asked = group.of(writing)
            if not any(asked):
                continue
            rules, own = group.rules, group.scores(scores, rows, writing)
            picked = rules.choice(own, group.of(rows), asked, self.level)
            rule, records = rules.hand_over, rules.acceptance.needs_draft_logits
            confidences = rule.confidence(own)
            # Where nothing is measured it is still looked at whether the scores are numbers.
            ids, numbers = to_host(picked, own.summary.probability if confidences is None else confidences)
            for at, b in enumerate(group.members):
                if writing[b]:
                    logits = own.logits[at, -1] if records else None
                    token, measured = int(ids[at][0]), confidences is not None
                    _write(rows[b], drafts[b], token, numbers[at][0], rule, measured, logits, room[b])


def _roll(
    scorer: Rolling, rows: Sequence[Row], room: Sequence[int], drafts: Sequence[Draft], writing: Sequence[int]
) -> int:
    """Some more tokens of every row that writes, of which those behind its hand-over are forgotten.

    Returns:
        How many passes the model made.
    """
    left = [free - len(draft.tokens) for free, draft, more in zip(room, drafts, writing, strict=True) if more]
    steps = min(max(left), AT_ONCE)
    written, probabilities = scorer.roll(unread(scorer, rows, writing), steps)
    for b, row in enumerate(rows):
        if writing[b]:
            rule, draft, free = row.rules.hand_over, drafts[b], room[b]
            measured = looks_at(rule) == "probability"
            for token, probability in zip(written[b], probabilities[b], strict=True):
                _write(row, draft, token, probability, rule, measured, None, free)
                if draft.reason is not None:
                    break
    # As token by token: what a row wrote last is not read yet, unless another token was looked at and dropped.
    scorer.truncate([len(row.tokens) - (draft.doubtful is None) for row, draft in zip(rows, drafts, strict=True)])
    return steps


def _write(
    row: Row,
    draft: Draft,
    token: int,
    confidence: float,
    rule: HandOver,
    measured: bool,
    logits: Tensor | None,
    room: int,
) -> None:
    # Scores that are not numbers make a number that is not equal to itself.
    broken = confidence != confidence
    unsure = broken or (measured and rule.unsure(confidence, row))
    if measured:
        draft.confidences.append(confidence)
    if unsure and (broken or not rule.keeps_doubtful):
        draft.reason, draft.doubtful = "unsure", token
        return
    row.tokens.append(token)
    draft.tokens.append(token)
    if logits is not None:
        draft.logits.append(logits)
    finish = row.ended()
    if finish is not None:
        draft.reason = ENDS[finish]
    elif unsure:
        draft.reason = "unsure"
    elif len(draft.tokens) >= room:
        draft.reason = "window"


def looks_at(rule: HandOver) -> LooksAt:
    """What a rule looks at; one that does not say is given logits."""
    found: LooksAt = getattr(rule, "looks_at", "logits")
    return found


def _may_roll(group: Group) -> bool:
    """Whether tokens of its rows can be picked without looking at more than the likeliest and its probability."""
    rules = group.rules
    plain = type(rules.choice) is Greedy and not group.processes and not rules.acceptance.needs_draft_logits
    return plain and looks_at(rules.hand_over) != "logits"


def alike(one: Rules, other: Rules) -> bool:
    """Whether tokens of rows under these rules may be picked together."""
    same_logits = one.acceptance.needs_draft_logits == other.acceptance.needs_draft_logits
    return one.choice == other.choice and one.hand_over == other.hand_over and same_logits
