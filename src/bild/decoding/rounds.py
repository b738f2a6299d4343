"""The loop (Algorithm 1): draft, verify, accept, and the large model writes the next token.

Each model knows how many tokens it has read and is always fed what it has not, so prefill, catching up after the
other model wrote, rolling back and joining a running batch need no cases of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from bild.decoding.acceptance import WRITES_ITS_OWN
from bild.decoding.at_once import play
from bild.decoding.choice import Choice, Greedy
from bild.decoding.commits import Commit, commit_judged, commit_one_by_one, commit_unread, commit_written
from bild.decoding.draft import Draft, Work, Writer
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.policy import Policy
from bild.decoding.rows import Request, Row, Rules, Segments
from bild.decoding.scorer import Scorer, copied
from bild.decoding.segments import Way, apart, room, ways
from bild.decoding.verdict import Verdict, learner
from bild.decoding.verifier import LocalVerifier, Verifier
from bild.errors import BildError


def decode(
    requests: Sequence[Request],
    policy: Policy,
    *,
    large: Scorer,
    drafter: Drafter | None = None,
    choice: Choice | None = None,
    segments: Segments | None = None,
) -> Iterator[Commit]:
    """Decode a batch of requests under one policy.

    Args:
        requests: one a row, in the order of the scorers' rows.
        policy: when the drafter hands over, and what the large model lets pass.
        large: the scorer that judges and writes; with ``policy.alone`` and no drafter the model that decodes.
        drafter: proposes tokens; None: ``large`` writes every token.
        choice: how the models pick their tokens, greedy by default.
        segments: who judges them, where the policy is about segments.

    Yields:
        One :class:`Commit` a row and round.
    """
    verifier = LocalVerifier(large, policy.alone if drafter is None and policy.alone is not None else "large")
    policy = policy if drafter is not None else replace(policy, alone="large")
    rules = Rules(policy, Greedy() if choice is None else choice, segments)
    batch = Batch([Row(index, request, rules) for index, request in enumerate(requests)], verifier, drafter)
    while batch.rows:
        yield from batch.round()


class Loop(Protocol):
    """Rows that are decoded together: written token by token, or searched (:class:`~bild.decoding.BeamBatch`)."""

    @property
    def rows(self) -> Sequence[Row]:
        """Those that have not ended."""

    @property
    def drafter(self) -> object | None:
        """Who drafts; None where nobody does."""

    def round(self, window: int | None = None, most: int = 1) -> Iterator[Commit]:
        """See :meth:`Batch.round`."""

    def join(self, other: Self) -> None:
        """See :meth:`Batch.join`."""

    def keep(self, rows: Sequence[int]) -> None:
        """See :meth:`Batch.keep`."""

    def read(self, limit: int) -> bool:
        """See :meth:`Batch.read`."""


@dataclass
class Batch:
    """Rows that are decoded together; each hands over, rolls back and ends on its own, under rules of its own.

    Args:
        rows: in the order of the verifier's and the drafter's rows.
        large: judges drafts and writes.
        drafter: proposes tokens; None where the large model decodes all rows alone.
        vocab_size: ids a drafter may propose are below; None: it is trusted.
        scorers: all that the verifier and the drafter read with, as they were started.
        parting: told the places of rows that are about to leave, ended or cancelled.
    """

    rows: list[Row]
    large: Verifier
    drafter: Drafter | None = None
    vocab_size: int | None = None
    scorers: Sequence[Scorer] = ()
    parting: Callable[[Batch, Sequence[int]], None] | None = None

    def round(self, window: int | None = None, most: int = 1) -> Iterator[Commit]:
        """Let every row write until its drafter hands over, and the large model judge what was drafted.

        Rows that end leave the batch. A round has to be iterated to its end.

        Args:
            window: longest draft of this round, 0…; None: as long as each row's policy allows.
            most: rounds, 1…; more than one are played where that can be done in one call.

        Yields:
            One :class:`Commit` a row and round; a few, a token each, where the large model writes on because nothing is
            drafted.

        Raises:
            ValueError: a draft that breaks the drafter's contract; no row has lost or won a token then.
            ScoreError: a model whose scores are not numbers.
            InputError: a reward that fails; likewise.
        """
        # Alone: a model that nobody checks may write several tokens in one call.
        if self.drafter is None and (written := self.large.write(self.rows)) is not None:
            alone = [commit_written(*each) for each in zip(self.rows, written, strict=True)]
            self._drop_ended(alone)
            yield from alone
            return

        # The same in one call, where the models can follow the rules by themselves.
        if (played := play(self.rows, self.large, self.drafter, window, most)) is not None:
            last = {commit.row: commit for commit in played}
            self._drop_ended([last.get(row.index) for row in self.rows])
            self._forget()
            yield from played
            return

        # Draft: each row's drafter writes until it is unsure, its room is used, or the text ends.
        drafted = self._draft(window)

        # With nothing to judge, the large model may write on until somebody has something to propose.
        if (on := self._write_on(drafted)) is not None:
            yield from on
            return

        # What need not be read is final: an end token may pass unread (Algorithm 1, line 2), or a good segment.
        away = self._ways(drafted)
        commits = [commit_unread(*each) for each in zip(self.rows, drafted, away, strict=True)]
        drafts = [draft if commit is None else None for draft, commit in zip(drafted, commits, strict=True)]
        if any(commits):
            going = self._drop_ended(commits)
            drafts, away = [drafts[b] for b in going], [away[b] for b in going]
            yield from filter(None, commits)
            if not self.rows:
                return

        # Verify: one large pass reads the drafts; row i judges tokens[committed + i].
        shown = [Draft() if way == "rewrite" else draft for way, draft in zip(away, drafts, strict=True)]
        verdicts = self.large.verify(self.rows, shown)
        # What is read for its likelihood only is not judged.
        self._learn([None if way == "score" else draft for way, draft in zip(away, drafts, strict=True)], verdicts)

        # Accept: up to the first token the large model finds too unlikely; it writes the next one.
        commits = [commit_judged(*each) for each in zip(self.rows, drafts, verdicts, away, strict=True)]

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
            self.large, self.drafter, self.scorers = other.large, other.drafter, other.scorers
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
            if self.parting is not None:
                self.parting(self, sorted(set(range(len(self.rows))) - set(rows)))
            # Also where none goes on: a verifier elsewhere is told so.
            self.large.keep(rows)
            if rows and self.drafter is not None:
                self.drafter.keep(rows)
        self.rows = [self.rows[b] for b in rows]

    def copies(self, row: int) -> list[Scorer | None]:
        """What each of the scorers has read of a row that is final, as one of its own; None of those that go on from
        what another one has read.

        Args:
            row: its place.
        """
        known = max(0, self.rows[row].committed - 1)
        made = [copied(scorer, [row]) for scorer in self.scorers]
        for copy in made:
            if copy is not None:
                # Behind that there may be a draft that was rolled back.
                copy.truncate([known])
        return made

    def read(self, limit: int) -> bool:
        """Let both models read at most ``limit`` prompt tokens of each row; True once nothing but drafting is left.

        A long prompt is read in pieces, so that the rows of another batch can go on in between.
        """
        done = self.large.read(self.rows, limit)
        return (self.drafter is None or self.drafter.read(self.rows, limit)) and done

    def _draft(self, window: int | None) -> list[Draft]:
        if self.drafter is None:
            return [Draft() for _ in self.rows]
        allowed = [room(row) for row in self.rows]
        # A segment that a reward judges is as long as it is, however short other drafts are to be.
        free = [
            own if window is None or row.rules.segments is not None else min(own, window)
            for row, own in zip(self.rows, allowed, strict=True)
        ]
        if not any(free):
            return [Draft() for _ in self.rows]
        with apart(self.rows):
            drafts = self.drafter.draft(self.rows, free)
        for row, draft, most in zip(self.rows, drafts, free, strict=True):
            if fault := self._fault(draft, most):
                self._take_back()
                raise ValueError(f"drafter {draft.writer!r} proposed {fault} in row {row.index}")
        return drafts

    def _write_on(self, drafts: Sequence[Draft]) -> list[Commit] | None:
        """What the large model has written where all drafters were silent; None where it writes one token a round."""
        # Both are optional: a drafter that knows when it is silent, and a verifier that can write on.
        proposes: Callable[[Row], bool] | None = getattr(self.drafter, "proposes", None)
        write_until: Callable[..., list[dict[Writer, Work]] | None] | None = getattr(self.large, "write_until", None)
        if proposes is None or write_until is None or not all(map(_is_silent, self.rows, drafts)):
            return None
        starts = [row.committed for row in self.rows]

        def stops(row: Row) -> bool:
            row.committed = len(row.tokens)
            return row.rules.window > 0 and proposes(row)

        written = write_until(self.rows, stops)
        if written is None:
            return None
        rows = [commit_one_by_one(*each) for each in zip(self.rows, starts, written, strict=True)]
        self._drop_ended([commits[-1] for commits in rows])
        return [commit for commits in rows for commit in commits]

    def _ways(self, drafts: Sequence[Draft]) -> list[Way]:
        try:
            return ways(self.rows, drafts)
        except BildError:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """As if nothing had been drafted."""
        for row in self.rows:
            del row.tokens[row.committed :]
        self._forget()

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
            if draft is not None and verdict is not None:
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


def _is_silent(row: Row, draft: Draft) -> bool:
    """Whether nothing is to be judged in a row, now or until its drafter has something to propose."""
    rules = row.rules
    nothing = draft.reason == "nothing" or not rules.window
    return nothing and rules.segments is None and type(rules.acceptance) in WRITES_ITS_OWN
