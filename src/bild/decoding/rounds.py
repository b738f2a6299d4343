"""The loop (Algorithm 1): draft, verify, accept, and the large model writes the next token.

Each model knows how many tokens it has read and is always fed what it has not, so prefill,
catching up after the other model wrote, and rolling back need no cases of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bild.decoding.acceptance import Acceptance, ExactMatch, Reading
from bild.decoding.adaptive import Adaptive
from bild.decoding.choice import Choice, Greedy
from bild.decoding.policy import Policy, Writer
from bild.decoding.rows import FinishReason, Request, Row
from bild.decoding.scorer import Draft, Drafter, HandOverReason, Scorer, score
from bild.decoding.transfer import to_host


@dataclass(frozen=True, slots=True)
class Commit:
    """What one round made final in one row, and how it came about."""

    row: int
    """Index of the row in the request list."""
    tokens: tuple[int, ...]
    """Tokens that never change again."""
    writers: tuple[Writer, ...]
    """Who wrote each of them."""
    draft: tuple[int, ...] = ()
    """What the small model proposed, kept or not."""
    accepted: int = 0
    """How many of the draft's tokens stay."""
    reason: HandOverReason | None = None
    """Why the small model handed over; None when one model decodes alone."""
    verified: bool = True
    """Whether the large model read the draft; False for an end accepted unread."""
    finish_reason: FinishReason | None = None
    """Set on the last commit of a row."""
    small_steps: int = 0
    large_steps: int = 0
    confidences: tuple[float, ...] = ()
    """The small model's confidence in each draft token, then in the one it dropped."""
    distances: tuple[float, ...] = ()
    """``d(p_S, p_L)`` of each draft token."""
    doubtful: int | None = None
    """The token the small model was too unsure of to propose."""

    @property
    def rolled_back(self) -> bool:
        """Whether the large model rejected part of the draft."""
        return self.accepted < len(self.draft)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the large model says of one row's draft."""

    accepted: int
    next_token: int
    distances: tuple[float, ...]
    own: tuple[int, ...]
    """The large model's own token for each draft position."""


def decode(
    requests: Sequence[Request],
    policy: Policy,
    *,
    large: Scorer,
    drafter: Drafter | None = None,
    choice: Choice | None = None,
) -> Iterator[Commit]:
    """Decode a batch; each row hands over, rolls back and ends on its own.

    Args:
        requests: one a row, in the order of the scorers' rows.
        policy: its acceptance rule and flags; its hand-over rule lives in the drafter.
        large: the scorer that judges and writes; with ``policy.alone`` the model that decodes.
        drafter: proposes tokens; None: ``large`` writes every token.
        choice: how ``large`` picks its tokens, greedy by default.

    Yields:
        One :class:`Commit` a row and round.
    """
    choice = Greedy() if choice is None else choice
    # Without a drafter there is nothing to judge, so the rule that measures nothing.
    acceptance = ExactMatch() if drafter is None else policy.acceptance
    rows = [Row(index, request) for index, request in enumerate(requests)]
    while rows:
        # Draft: the small model writes until it is unsure, its window is full, or the text ends.
        drafts = drafter.draft(rows) if drafter is not None else [Draft() for _ in rows]

        # Verify: one large pass reads the drafts; an end may pass unread (Algorithm 1, line 2).
        read = [b for b, draft in enumerate(drafts) if draft.reason != "end" or policy.verifies_end(draft)]
        if len(read) < len(rows):
            yield from (_finish_unread(rows[b], drafts[b]) for b in range(len(rows)) if b not in read)
            rows, drafts = _keep(read, rows, drafts, large, drafter)
            if not rows:
                return
        verdicts = verify(large, rows, drafts, acceptance, choice)
        if policy.adapts:
            for row, draft, verdict in zip(rows, drafts, verdicts, strict=True):
                learn(policy, row, draft, verdict)

        # Accept: up to the first token the large model finds too unlikely; it writes the next one.
        writer: Writer = policy.alone or "large"
        commits = [_commit(*each, writer) for each in zip(rows, drafts, verdicts, strict=True)]

        # Forget the rest in both models. Nobody has read the token just written.
        going = [b for b, commit in enumerate(commits) if commit.finish_reason is None]
        lengths = [row.committed - 1 for row in rows]
        if going:
            large.truncate(lengths)
            if drafter is not None:
                drafter.truncate(lengths)
            rows, _ = _keep(going, rows, drafts, large, drafter)
        yield from commits
        if not going:
            return


def verify(
    large: Scorer, rows: Sequence[Row], drafts: Sequence[Draft], acceptance: Acceptance, choice: Choice
) -> list[Verdict]:
    """Read each row's draft in one pass and judge it; one transfer to the host."""
    counts = [len(draft.tokens) + 1 for draft in drafts]
    width = max(counts)
    unread = [row.tokens[length:] for row, length in zip(rows, large.lengths, strict=True)]
    logits, summary = score(large, rows, unread, counts)
    # drafted[b, t] stands where position t of the logits judges it; padding on the left, nothing behind the draft.
    padded = [[0] * (width - count) + draft.tokens + [0] for draft, count in zip(drafts, counts, strict=True)]
    drafted = torch.tensor(padded, device=logits.device)
    draft_logits = _stack(drafts, logits) if acceptance.needs_draft_logits else None
    reading = Reading(logits, drafted, draft_logits, rows, counts, choice, summary)
    keeps, replacements, distances = to_host(*acceptance.judge(reading))

    def verdict(b: int) -> Verdict:
        first, drafted_tokens = width - counts[b], counts[b] - 1
        kept = keeps[b][first : width - 1]
        accepted = kept.index(False) if False in kept else drafted_tokens
        own = [int(token) for token in replacements[b][first:]]
        return Verdict(accepted, own[accepted], tuple(distances[b][first : width - 1]), tuple(own[:-1]))

    return [verdict(b) for b in range(len(rows))]


def _stack(drafts: Sequence[Draft], like: Tensor) -> Tensor:
    """What the small model picked each draft token from, laid out as the large model's logits; zero elsewhere."""
    stacked = torch.zeros_like(like)
    for b, draft in enumerate(drafts):
        if draft.logits:
            stacked[b, -1 - len(draft.logits) : -1] = torch.stack(draft.logits)
    return stacked


def learn(policy: Policy, row: Row, draft: Draft, verdict: Verdict) -> None:
    """Tell adaptive rules which tokens of a round the large model would have written too."""
    agreed = [token == own for token, own in zip(draft.tokens, verdict.own, strict=True)]
    if isinstance(policy.acceptance, Adaptive):
        policy.acceptance.learn(row, verdict.distances, agreed)
    if isinstance(policy.hand_over, Adaptive):
        if draft.doubtful is not None and verdict.accepted == len(draft.tokens):
            agreed.append(draft.doubtful == verdict.next_token)
        policy.hand_over.learn(row, draft.confidences[: len(agreed)], agreed)


def _commit(row: Row, draft: Draft, verdict: Verdict, writer: Writer) -> Commit:
    """Make a row's accepted draft and the large model's token final."""
    accepted = verdict.accepted
    start = row.committed
    del row.tokens[start + accepted :]
    # Only a whole draft can end the text: each of its tokens was asked when it was written.
    finish_reason = row.ended() if draft.reason == "end" and accepted == len(draft.tokens) else None
    writers: list[Writer] = ["small"] * accepted
    if finish_reason is None:
        row.tokens.append(verdict.next_token)
        writers.append(writer)
        finish_reason = row.ended()
    row.committed = len(row.tokens)
    return Commit(
        row=row.index,
        tokens=tuple(row.tokens[start:]),
        writers=tuple(writers),
        draft=tuple(draft.tokens),
        accepted=accepted,
        reason=draft.reason,
        finish_reason=finish_reason,
        small_steps=draft.steps + (writer == "small"),
        large_steps=int(writer == "large"),
        confidences=tuple(draft.confidences),
        distances=verdict.distances,
        doubtful=draft.doubtful,
    )


def _finish_unread(row: Row, draft: Draft) -> Commit:
    """End a row with a draft the large model never reads."""
    writers: list[Writer] = ["small"] * len(draft.tokens)
    row.committed = len(row.tokens)
    return Commit(
        row=row.index,
        tokens=tuple(draft.tokens),
        writers=tuple(writers),
        draft=tuple(draft.tokens),
        accepted=len(draft.tokens),
        reason=draft.reason,
        verified=False,
        finish_reason=row.ended(),
        small_steps=draft.steps,
        confidences=tuple(draft.confidences),
    )


def _keep(
    kept: Sequence[int], rows: list[Row], drafts: list[Draft], large: Scorer, drafter: Drafter | None
) -> tuple[list[Row], list[Draft]]:
    """Go on with some rows of the batch, everywhere."""
    if kept and len(kept) < len(rows):
        large.keep(kept)
        if drafter is not None:
            drafter.keep(kept)
    return [rows[b] for b in kept], [drafts[b] for b in kept]
