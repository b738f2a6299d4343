"""The loop (Algorithm 1): draft, verify, accept, and the large model writes the next token.

Each model knows how many tokens it has read and is always fed what it has not, so prefill, catching up after the
other model wrote, rolling back and joining a running batch need no cases of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bild.decoding.choice import Choice, Greedy
from bild.decoding.draft import NO_WORK, Draft, HandOverReason, Work, Writer
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.likelihood import Scored
from bild.decoding.policy import Policy
from bild.decoding.rows import FinishReason, Request, Row, Rules
from bild.decoding.scorer import Scorer
from bild.decoding.verdict import Verdict, learner
from bild.decoding.verifier import LocalVerifier, Verifier


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
    """Whether the large model read the draft; False for what passes unread: an end
    token, or all of a text that the small model writes alone."""
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
    """How likely the large model found each token; empty unless the request asks. An end that passes unread is read for
    this, without being judged."""

    @property
    def rolled_back(self) -> bool:
        """Whether the large model rejected part of the draft."""
        return self.accepted < len(self.draft)

    def steps(self, writer: Writer) -> int:
        """Forward passes of this model that served the row."""
        return self.work.get(writer, NO_WORK).steps


def decode(
    requests: Sequence[Request],
    policy: Policy,
    *,
    large: Scorer,
    drafter: Drafter | None = None,
    choice: Choice | None = None,
) -> Iterator[Commit]:
    """Decode a batch of requests under one policy.

    Args:
        requests: one a row, in the order of the scorers' rows.
        policy: when the drafter hands over, and what the large model lets pass.
        large: the scorer that judges and writes; with ``policy.alone`` and no drafter the model that decodes.
        drafter: proposes tokens; None: ``large`` writes every token.
        choice: how the models pick their tokens, greedy by default.

    Yields:
        One :class:`Commit` a row and round.
    """
    verifier = LocalVerifier(large, policy.alone if drafter is None and policy.alone is not None else "large")
    policy = policy if drafter is not None else replace(policy, alone="large")
    rules = Rules(policy, Greedy() if choice is None else choice)
    batch = Batch([Row(index, request, rules) for index, request in enumerate(requests)], verifier, drafter)
    while batch.rows:
        yield from batch.round()


@dataclass
class Batch:
    """Rows that are decoded together; each hands over, rolls back and ends on its own, under rules of its own.

    Args:
        rows: in the order of the verifier's and the drafter's rows.
        large: judges drafts and writes.
        drafter: proposes tokens; None where the large model decodes all rows alone.
        vocab_size: ids a drafter may propose are below; None: it is trusted.
    """

    rows: list[Row]
    large: Verifier
    drafter: Drafter | None = None
    vocab_size: int | None = None

    def round(self, window: int | None = None) -> Iterator[Commit]:
        """Let every row write until its drafter hands over, and the large model judge what was drafted.

        Rows that end leave the batch. A round has to be iterated to its end.

        Args:
            window: longest draft of this round, 0…; None: as long as each row's policy allows.

        Yields:
            One :class:`Commit` a row.

        Raises:
            ValueError: a draft that breaks the drafter's contract; no row has lost or won a token then.
            ScoreError: a model whose scores are not numbers.
        """
        # Alone: a model that nobody checks may write several tokens in one call.
        if self.drafter is None and (written := self.large.write(self.rows)) is not None:
            alone = [_commit_written(*each) for each in zip(self.rows, written, strict=True)]
            self._drop_ended(alone)
            yield from alone
            return

        # Draft: each row's drafter writes until it is unsure, its room is used, or the text ends.
        drafts: list[Draft | None] = [*self._draft(window)]

        # What need not be read is final: an end token may pass unread (Algorithm 1, line 2).
        commits = [_commit_unread(*each) for each in zip(self.rows, drafts, strict=True)]
        if any(commits):
            drafts = [draft if commit is None else None for draft, commit in zip(drafts, commits, strict=True)]
            drafts = [drafts[b] for b in self._drop_ended(commits)]
            yield from filter(None, commits)
            if not self.rows:
                return

        # Verify: one large pass reads the drafts; row i judges tokens[committed + i].
        verdicts = self.large.verify(self.rows, drafts)
        self._learn(drafts, verdicts)

        # Accept: up to the first token the large model finds too unlikely; it writes the next one.
        commits = [_commit(*each) for each in zip(self.rows, drafts, verdicts, strict=True)]

        # Forget the rest in both models. Nobody has read the token just written.
        self._drop_ended(commits)
        self._forget()
        yield from filter(None, commits)

    def join(self, other: Batch) -> None:
        """Go on with another batch's rows behind these; it is used up. Both are of the same models.

        Raises:
            ValueError: one of them has a drafter and the other has none.
        """
        if (self.drafter is None) != (other.drafter is None):
            raise ValueError("a batch with a drafter and one without cannot join; start both of the same models")
        if not self.rows:
            # Whoever left last took nothing along: the models still hold what the last rows have read.
            self.large, self.drafter = other.large, other.drafter
        elif other.rows:
            self.large.join(other.large)
            if self.drafter is not None and other.drafter is not None:
                self.drafter.join(other.drafter)
        self.rows = self.rows + other.rows

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows of the batch; the others are cancelled.

        Args:
            rows: places in the batch, ascending.

        Raises:
            ValueError: a place that is not there, or one named twice.
        """
        if list(rows) != sorted(set(rows)) or not set(rows) <= set(range(len(self.rows))):
            raise ValueError(f"cannot keep rows {list(rows)} of {len(self.rows)}; name places in ascending order")
        if len(rows) < len(self.rows):
            # Also where none goes on: a verifier elsewhere is told so.
            self.large.keep(rows)
            if rows and self.drafter is not None:
                self.drafter.keep(rows)
        self.rows = [self.rows[b] for b in rows]

    def read(self, limit: int) -> bool:
        """Let both models read at most ``limit`` prompt tokens of each row; True once nothing but drafting is left.

        A long prompt is read in pieces, so that the rows of another batch can go on in between.
        """
        done = self.large.read(self.rows, limit)
        return (self.drafter is None or self.drafter.read(self.rows, limit)) and done

    def _draft(self, window: int | None) -> list[Draft]:
        if self.drafter is None:
            return [Draft() for _ in self.rows]
        allowed = [row.rules.window for row in self.rows]
        room = allowed if window is None else [min(own, window) for own in allowed]
        drafts = self.drafter.draft(self.rows, room) if any(room) else [Draft() for _ in self.rows]
        for row, draft, free in zip(self.rows, drafts, room, strict=True):
            if fault := self._fault(draft, free):
                for each in self.rows:
                    del each.tokens[each.committed :]
                self._forget()
                raise ValueError(f"drafter {draft.writer!r} proposed {fault} in row {row.index}")
        return drafts

    def _fault(self, draft: Draft, room: int) -> str | None:
        """What a draft breaks of its drafter's contract."""
        if len(draft.tokens) > room:
            return f"{len(draft.tokens)} tokens where {room} were allowed"
        if (
            self.vocab_size is not None
            and draft.tokens
            and not 0 <= min(draft.tokens) <= max(draft.tokens) < self.vocab_size
        ):
            return f"tokens {draft.tokens}, of which not all are in the vocabulary of {self.vocab_size}"
        return None

    def _learn(self, drafts: Sequence[Draft | None], verdicts: Sequence[Verdict | None]) -> None:
        """Tell the rules of each row, and the drafter, what became of its draft."""
        drafter = learner(self.drafter)
        for row, draft, verdict in zip(self.rows, drafts, verdicts, strict=True):
            if draft is not None and verdict is not None and row.rules.policy.reads(draft):
                for part in (learner(row.rules.acceptance), learner(row.rules.hand_over), drafter):
                    if part is not None:
                        part.learn(row, draft, verdict)

    def _drop_ended(self, commits: Sequence[Commit | None]) -> list[int]:
        """Go on with the rows that have not ended; their places."""
        going = [b for b, commit in enumerate(commits) if commit is None or commit.finish_reason is None]
        if len(going) < len(self.rows):
            self.keep(going)
        return going

    def _forget(self) -> None:
        if self.rows:
            lengths = [row.committed - 1 for row in self.rows]
            self.large.truncate(lengths)
            if self.drafter is not None:
                self.drafter.truncate(lengths)


def _commit(row: Row, draft: Draft | None, verdict: Verdict | None) -> Commit | None:
    """Make a row's accepted draft and the large model's token final; None for a row that was passed over."""
    if draft is None or verdict is None:
        return None
    start, verified = row.committed, row.rules.policy.reads(draft)
    # What passes unread is here for its likelihood only.
    accepted = verdict.accepted if verified else len(draft.tokens)
    del row.tokens[start + accepted :]
    # Only a whole draft can end the text: each of its tokens was asked when it was written.
    finish_reason = row.ended() if draft.ends and accepted == len(draft.tokens) else None
    writers = draft.signed(accepted)
    if finish_reason is None:
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


def _commit_written(row: Row, work: Mapping[Writer, Work]) -> Commit:
    """Make final what the large model has written alone."""
    tokens = row.tokens[row.committed :]
    row.committed = len(row.tokens)
    return Commit(row.index, tuple(tokens), tuple(work) * len(tokens), finish_reason=row.ended(), work=work)


def _commit_unread(row: Row, draft: Draft | None) -> Commit | None:
    """Make a draft final that the large model never reads; None if it must be read."""
    policy = row.rules.policy
    if draft is None or policy.reads(draft) or (row.request.logprobs is not None and policy.alone is None):
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
