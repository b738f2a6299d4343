"""The small model as a drafter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bild.decoding.draft import Draft, Work, Writer
from bild.decoding.grouping import Group, groups
from bild.decoding.hand_over import HandOver, LooksAt
from bild.decoding.rows import Halt, Row, Rules
from bild.decoding.scorer import Reader, Rolling, Scorer, passed, read, rolling, unread
from bild.decoding.transfer import to_host


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
        # The rows of a group are alike, so its first one answers for it.
        scorer = rolling(self.scorer) if all(may_roll(rows[group.members[0]]) for group in together) else None
        if scorer is not None:
            steps = _roll(scorer, rows, room, drafts, [int(free > 0) for free in room])
        while any(writing := [int(free > 0 and each.reason is None) for free, each in zip(room, drafts, strict=True)]):
            passes = passed(self.scorer, writing)
            self._step(rows, room, drafts, writing, together)
            steps = [count + more for count, more in zip(steps, passes, strict=True)]
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
                    write(rows[b], drafts[b], token, numbers[at][0], rule, measured, logits, room[b])


def _roll(
    scorer: Rolling, rows: Sequence[Row], room: Sequence[int], drafts: Sequence[Draft], writing: Sequence[int]
) -> list[int]:
    """Let every row that writes do so until it hands over; passes that served each row."""
    rules = [row.rules.hand_over for row in rows]
    measured = [looks_at(rule) == "probability" for rule in rules]

    def take(b: int, token: int, probability: float) -> bool:
        write(rows[b], drafts[b], token, probability, rules[b], measured[b], None, room[b])
        return drafts[b].reason is None

    halts = [halt(row, free) if free > 0 else None for row, free in zip(rows, room, strict=True)]
    return scorer.roll(unread(scorer, rows, writing), max(room), take, halts)


def halt(row: Row, room: int) -> Halt | None:
    """Where :func:`write` ends a draft, as far as the rule says it before."""
    rule = row.rules.hand_over
    if looks_at(rule) == "nothing":
        return row.halt(room)
    least = getattr(rule, "least", None)
    return None if least is None else row.halt(room, least(row))


def write(
    row: Row,
    draft: Draft,
    token: int,
    confidence: float,
    rule: HandOver,
    measured: bool,
    logits: Tensor | None,
    room: int,
) -> None:
    """Take a token of the small model into a draft, or say why the draft ends.

    Args:
        row: gets it.
        draft: likewise.
        token: what the small model writes.
        confidence: in it; a number that is none hands over.
        rule: when the small model hands over.
        measured: whether the rule looks at confidences.
        logits: what the token was picked from, where they are recorded.
        room: longest draft.
    """
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
    draft.reason = row.stops()
    if draft.reason is not None:
        return
    if unsure:
        draft.reason = "unsure"
    elif len(draft.tokens) >= room:
        draft.reason = "window"


def looks_at(rule: HandOver) -> LooksAt:
    """What a rule looks at; one that does not say is given logits."""
    found: LooksAt = getattr(rule, "looks_at", "logits")
    return found


def may_roll(row: Row) -> bool:
    """Whether its tokens can be picked without looking at more than the likeliest and its probability."""
    rules = row.rules
    return row.takes_likeliest and not rules.acceptance.needs_draft_logits and looks_at(rules.hand_over) != "logits"


def alike(one: Rules, other: Rules) -> bool:
    """Whether tokens of rows under these rules may be picked together."""
    same_logits = one.acceptance.needs_draft_logits == other.acceptance.needs_draft_logits
    return one.choice == other.choice and one.hand_over == other.hand_over and same_logits
