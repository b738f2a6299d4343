"""The contract of what judges drafts and writes, and the large model as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from bild.decoding.acceptance import Reading
from bild.decoding.draft import Draft, Work, Writer
from bild.decoding.grouping import Group, groups
from bild.decoding.likelihood import Scored, scored
from bild.decoding.rows import Row, Rules
from bild.decoding.scorer import Reader, Scorer, read, rolling, unread
from bild.decoding.scores import Scores, check_numbers
from bild.decoding.transfer import to_device, to_host
from bild.decoding.verdict import Verdict

AT_ONCE = 8
"""Tokens that a model which decodes alone writes in one round, where it can: a stream shows them as they come."""


class Verifier(Protocol):
    """What judges drafts and writes the token behind them: all that would cross a network."""

    def verify(self, rows: Sequence[Row], drafts: Sequence[Draft | None]) -> list[Verdict | None]:
        """Read each row's draft, the end of its tokens, and judge it by the row's rules.

        Args:
            rows: of the batch.
            drafts: of each row; None: the row is passed over, and its verdict is None.

        Raises:
            ScoreError: scores that are not numbers.
        """

    def write(self, rows: Sequence[Row]) -> list[dict[Writer, Work]] | None:
        """Write the next tokens of rows that nobody drafts for, some at a time, behind their tokens.

        Returns:
            What was done for each row, by who did it; None where it writes one token a round, by :meth:`verify`.
        """

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        """Read at most ``limit`` prompt tokens of each row; True once only drafts are left to read."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget everything after ``lengths[b]`` tokens of row ``b``; no-op where shorter."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one may be named more than once. None: all have ended."""

    def join(self, other: Self) -> None:
        """Go on with another verifier's rows behind these; it is used up."""


class LocalVerifier(Reader):
    """A model on this machine: one pass reads the drafts of all rows.

    Args:
        scorer: the large model.
        name: what the tokens it writes are signed with.
        level: whose random numbers decide, see :meth:`~bild.decoding.history.History.uniform`.
    """

    def __init__(self, scorer: Scorer, name: Writer = "large", level: int = 0) -> None:
        super().__init__(scorer)
        self.name, self.level = name, level

    def verify(self, rows: Sequence[Row], drafts: Sequence[Draft | None]) -> list[Verdict | None]:
        counts = [0 if draft is None else len(draft.tokens) + 1 for draft in drafts]
        verdicts: list[Verdict | None] = [None] * len(rows)
        if not any(counts):
            return verdicts
        before = self.scorer.lengths
        # Made before the pass: a copy to a GPU that is asked for behind it would wait for it.
        drafted = _drafted(drafts, counts)
        scores = read(self.scorer, rows, counts)
        drafted = to_device(drafted, scores.logits.device)
        work = [Work(1, after - length) for after, length in zip(self.scorer.lengths, before, strict=True)]
        for group in groups(rows, alike):
            if not any(group.of(counts)):
                continue
            own = group.scores(scores, rows, counts)
            reading = Reading(
                own,
                drafted if group.whole else drafted[group.members],
                _distributions(group.of(drafts), own.logits) if group.rules.acceptance.needs_draft_logits else None,
                group.of(rows),
                group.of(counts),
                group.rules.choice,
                self.level,
            )
            self._judge(group, reading, rows, work, verdicts)
        return verdicts

    def write(self, rows: Sequence[Row]) -> list[dict[Writer, Work]] | None:
        return self._write(rows, None)

    def write_until(self, rows: Sequence[Row], stops: Callable[[Row], bool]) -> list[dict[Writer, Work]] | None:
        """As :meth:`write`, until a row stops.

        Args:
            rows: of the batch.
            stops: asked of a row after each of its tokens, unless that ends the text.
        """
        return self._write(rows, stops)

    def _write(self, rows: Sequence[Row], stops: Callable[[Row], bool] | None) -> list[dict[Writer, Work]] | None:
        scorer = rolling(self.scorer)
        if scorer is None or not all(row.takes_likeliest and row.request.logprobs is None for row in rows):
            return None
        # The first token of a text is not kept waiting.
        room = [AT_ONCE if row.committed > row.prompt_length else 1 for row in rows]
        ends = [len(row.tokens) + free for row, free in zip(rows, room, strict=True)]
        before, stopped = self.scorer.lengths, False

        def take(b: int, token: int, probability: float) -> bool:
            nonlocal stopped
            row = rows[b]
            self.check(row, [probability])
            row.tokens.append(token)
            if row.ended() is not None:
                return False
            # One row does not wait for the others.
            stopped = (stops is not None and stops(row)) or stopped
            return not stopped and len(row.tokens) < ends[b]

        # Where a row stops is not known before, so nothing is written that would have to be forgotten.
        halts = [row.halt(free) if stops is None else None for row, free in zip(rows, room, strict=True)]
        passes = scorer.roll(unread(scorer, rows, [1] * len(rows)), max(room), take, halts)
        after = self.scorer.lengths
        works = [Work(count, end - begin) for count, begin, end in zip(passes, before, after, strict=True)]
        return [{self.name: work} for work in works]

    def _judge(
        self,
        group: Group,
        reading: Reading,
        rows: Sequence[Row],
        work: Sequence[Work],
        verdicts: list[Verdict | None],
    ) -> None:
        """Fill in the verdicts of a group; one transfer to the host."""
        judgement, likeliest = group.rules.acceptance.judge(reading), reading.likeliest()
        # The largest of scores among which one is no number is no number either.
        highest = reading.logits.gather(-1, likeliest[..., None])[..., 0]
        # What the large model picks itself is mostly what it finds likeliest, and need not be brought twice.
        another = () if judgement.replacement is likeliest else (judgement.replacement,)
        host = to_host(judgement.keep, judgement.distance, likeliest, highest, *another)
        for at, (b, count) in enumerate(zip(group.members, reading.counts, strict=True)):
            if count:
                keeps, distances, own, scores, *other = (each[at][-count:] for each in host)
                replacements = other[0] if other else own
                accepted = _leading(keeps[:-1])
                next_token = int(replacements[accepted])
                self.check(rows[b], scores[: accepted + 1])
                verdicts[b] = Verdict(
                    accepted,
                    next_token,
                    tuple(distances[:-1]),
                    tuple(map(int, own)),
                    self.name,
                    work[b],
                    self._scored(rows[b], reading.scores, at, count, accepted, next_token),
                )

    def _scored(
        self, row: Row, scores: Scores, at: int, count: int, accepted: int, next_token: int
    ) -> tuple[Scored, ...]:
        """How likely the draft's tokens and the next one are, if the request asks and this model has the last word."""
        if row.request.logprobs is None or self.level > 0:
            return ()
        draft = row.tokens[len(row.tokens) - count + 1 :]
        places = [*range(-count, -1), accepted - count]
        return tuple(scored(scores, at, places, [*draft, next_token], row.request.logprobs))

    def check(self, row: Row, highest: Sequence[float]) -> None:
        """Refuse to go on from scores that are not numbers: one for each position up to the token to be written."""
        check_numbers(highest, f"the {self.name} model's", row.index, row.committed - row.prompt_length)


def alike(one: Rules, other: Rules) -> bool:
    """Whether drafts of rows under these rules may be judged together."""
    return one.choice == other.choice and one.acceptance == other.acceptance


def _leading(keeps: Sequence[bool]) -> int:
    """How many tokens stay: all before the first that may not."""
    return next((at for at, keep in enumerate(keeps) if not keep), len(keeps))


def _drafted(drafts: Sequence[Draft | None], counts: Sequence[int]) -> Tensor:
    """Draft tokens where the position of the scores stands that judges them: padded on the left, nothing behind."""
    width = max(counts)
    tokens = [[0] if draft is None else [*draft.tokens, 0] for draft in drafts]
    return torch.tensor([[0] * (width - len(row)) + row for row in tokens])


def _distributions(drafts: Sequence[Draft | None], like: Tensor) -> Tensor:
    """The logits each draft token was picked from, laid out as the large model's; zero where there is no token.

    A drafter that has no distribution is certain: all the probability is on its token.
    """
    stacked = torch.zeros_like(like)
    for b, draft in enumerate(drafts):
        if draft is None or not draft.tokens:
            continue
        place = stacked[b, -1 - len(draft.tokens) : -1]
        if draft.certain:
            tokens = to_device(torch.tensor(draft.tokens), like.device)[:, None]
            place.fill_(-math.inf).scatter_(-1, tokens, 0.0)
        elif len(draft.logits) == len(draft.tokens):
            place.copy_(torch.stack(draft.logits))
        else:
            raise ValueError(
                f"the rule needs the distribution of drafter {draft.writer!r}, which recorded {len(draft.logits)} for "
                f"{len(draft.tokens)} tokens; record one a token, or mark its drafts certain"
            )
    return stacked
