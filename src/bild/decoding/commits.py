"""What rounds make final, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from bild.decoding.draft import NO_WORK, Draft, HandOverReason, Work, Writer
from bild.decoding.likelihood import Scored
from bild.decoding.rows import FinishReason, Row
from bild.decoding.segments import Way
from bild.decoding.verdict import Verdict


class Hypothesis(NamedTuple):
    """A text that a beam search has finished."""

    tokens: tuple[int, ...]
    """The new ones."""
    score: float
    """Sum of the log-probabilities, divided by ``length ** length_penalty``."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Commit:
    """What one round made final in one row, and how it came about."""

    row: int
    """The row's index: its place in the request list."""
    tokens: tuple[int, ...]
    """Tokens that never change again."""
    writers: tuple[Writer, ...]
    """Who wrote each of them."""
    draft: tuple[int, ...] = ()
    """What the drafter proposed, kept or not."""
    accepted: int = 0
    """How many of the draft's tokens stay."""
    reason: HandOverReason | None = None
    """Why the drafter handed over; None when one model decodes alone."""
    verified: bool = True
    """Whether the large model read the draft, or wrote in its place; False for what passes unread: an end
    token, a segment that a reward finds good, or all of a text that the small model writes alone."""
    finish_reason: FinishReason | None = None
    """Set on the last commit of a row."""
    work: Mapping[Writer, Work] = field(default_factory=dict)
    """What each model did in this round, by its name."""
    confidences: tuple[float, ...] = ()
    """The small model's confidence in each draft token, then in the one it dropped."""
    distances: tuple[float, ...] = ()
    """``d(p_S, p_L)`` of each draft token."""
    doubtful: int | None = None
    """The token the small model was too unsure of to propose."""
    scored: tuple[Scored, ...] = ()
    """How likely the large model found each token; empty unless the request asks. An end, or a segment, that passes
    unread is read for this, without being judged."""
    hypotheses: tuple[Hypothesis, ...] | None = None
    """On the last commit of a beam search what it has finished, the best first; empty on those before, and None of any
    other text. What a search has drafted and accepted is counted in layers, and ``draft`` is the best hypothesis of the
    last one."""

    @property
    def rolled_back(self) -> bool:
        """Whether the large model rejected part of the draft."""
        return self.accepted < len(self.draft)

    def steps(self, writer: Writer) -> int:
        """Forward passes of this model that served the row."""
        return self.work.get(writer, NO_WORK).steps


def commit_judged(row: Row, draft: Draft | None, verdict: Verdict | None, way: Way) -> Commit | None:
    """Make a row's accepted draft and the large model's token final; None for a row that was passed over."""
    if draft is None or verdict is None:
        return None
    start, verified = row.committed, way != "score"
    # What passes unread is here for its likelihood only.
    accepted = verdict.accepted if verified else len(draft.tokens)
    del row.tokens[start + accepted :]
    # Only a whole draft can end the text: each of its tokens was asked when it was written.
    finish_reason = row.ended() if draft.ends and accepted == len(draft.tokens) else None
    writers = draft.signed(accepted)
    if finish_reason is None and verified:
        row.tokens.append(verdict.next_token)
        writers.append(verdict.writer)
        finish_reason = row.ended()
    row.committed = len(row.tokens)
    return Commit(
        row=row.index,
        tokens=tuple(row.tokens[start:]),
        writers=tuple(writers),
        draft=tuple(draft.tokens),
        accepted=accepted,
        reason=draft.reason,
        verified=verified,
        finish_reason=finish_reason,
        work={**draft.work, verdict.writer: verdict.work},
        confidences=tuple(draft.confidences),
        distances=verdict.distances if verified else (),
        doubtful=draft.doubtful,
        scored=(*verdict.scored[:accepted], *verdict.scored[-1:])[: len(writers)],
    )


def commit_written(row: Row, work: Mapping[Writer, Work]) -> Commit:
    """Make final what the large model has written alone."""
    tokens = row.tokens[row.committed :]
    row.committed = len(row.tokens)
    return Commit(row.index, tuple(tokens), tuple(work) * len(tokens), finish_reason=row.ended(), work=work)


def commit_one_by_one(row: Row, start: int, work: Mapping[Writer, Work]) -> list[Commit]:
    """As so many rounds with nothing drafted: what the large model has written behind ``start``, a token a round."""
    ((writer, done),) = work.items()
    tokens, more = row.tokens[start:], len(row.tokens) - start - 1
    # All but the first read one token, the one before.
    works = [Work(done.steps - more, done.read - more), *[Work(1, 1)] * more]
    row.committed = len(row.tokens)
    commits = [
        Commit(row.index, (token,), (writer,), reason="nothing" if row.rules.window else None, work={writer: own})
        for token, own in zip(tokens, works, strict=True)
    ]
    return [*commits[:-1], replace(commits[-1], finish_reason=row.ended())]


def commit_unread(row: Row, draft: Draft, way: Way) -> Commit | None:
    """Make a draft final that the large model need not read; None where it has the turn."""
    if way != "keep":
        return None
    row.committed = len(row.tokens)
    return Commit(
        row=row.index,
        tokens=tuple(draft.tokens),
        writers=tuple(draft.signed(len(draft.tokens))),
        draft=tuple(draft.tokens),
        accepted=len(draft.tokens),
        reason=draft.reason,
        verified=False,
        finish_reason=row.ended(),
        work=draft.work,
        confidences=tuple(draft.confidences),
    )
