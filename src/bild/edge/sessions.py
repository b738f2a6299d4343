"""One text of a device as the verifier knows it: its tokens, its last round, and what it was answered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bild.decoding import Draft, Row, Verdict
from bild.edge.numbers import HELD, NUMBERS, RejectionByNumber, replaced
from bild.edge.wire import NO_NUMBERS, Answer, Proposal
from bild.errors import ScoreError, one_line

logger = logging.getLogger("bild.edge")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A round that has no answer."""

    code: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """What a device is told of a pass that failed."""
        if isinstance(error, ScoreError):
            return cls(NO_NUMBERS, one_line(error))
        logger.error("a text could not be verified: %s", type(error).__name__)
        return cls("verifying_failed", "the text could not be verified")


Reply = Answer | Refusal


@dataclass(eq=False)
class Session:
    """One text of a device.

    Args:
        id: names it; not to be guessed.
        source: encoder input.
        row: its tokens and rules.
        used: when it was last asked for, by the clock.
    """

    id: str
    source: Sequence[int]
    row: Row
    used: float
    key: tuple[object, ...] | None = None
    """Of the last round."""
    reply: Answer | None = None
    """What the last round was answered."""
    held: Tensor | None = None
    """The verifier's distribution ``[V]`` where it waits for the device's."""

    @property
    def longest(self) -> int:
        """Tokens its text can have."""
        return self.row.prompt_length + self.row.request.max_new_tokens

    def known(self, proposal: Proposal) -> Reply | None:
        """The reply to a round that has been judged; None where a pass is needed."""
        if self.reply is None or self.key != proposal.key:
            return None
        if self.reply.token is not None or proposal.row is None:
            return self.reply
        if self.held is None:
            return None
        accepted = self.reply.accepted
        token = replaced(self.row, proposal.at + accepted, self.held, proposal.row)
        self.reply = Answer(accepted, token, self.reply.likeliest, (), self.reply.read)
        self.held = None
        self._commit(proposal, accepted, token)
        return self.reply

    def rewind(self, proposal: Proposal) -> None:
        """Forget what is behind the tokens that the device calls final."""
        row = self.row
        del row.tokens[proposal.at :]
        row.committed = proposal.at
        self.key = self.reply = self.held = None
        row.memory[NUMBERS] = [1.0] * len(proposal.draft) if proposal.certain else list(proposal.numbers)

    def draft(self, proposal: Proposal | None) -> Draft | None:
        """The draft of a round, now the end of the row's tokens; None where it is not asked for."""
        if proposal is None:
            # They are of an earlier round, whose draft may have been longer than any of this one.
            self.row.memory.pop(NUMBERS, None)
            return None
        self.row.tokens += proposal.draft
        return Draft(list(proposal.draft), certain=proposal.certain)

    def answer(self, proposal: Proposal, verdict: Verdict | None) -> Answer:
        """Take the verdict on a round over, and say it."""
        assert verdict is not None
        row, accepted = self.row, verdict.accepted
        held, likeliest = row.memory.pop(HELD, None), verdict.likeliest[: accepted + 1]
        rejects = isinstance(row.rules.acceptance, RejectionByNumber) and row.rules.choice.draws
        self.key, token = proposal.key, verdict.next_token
        if rejects and accepted < len(proposal.draft):
            q = _distribution(proposal, accepted, held)
            if q is None:
                # What stands is known; what follows it is not before the device has said more.
                del row.tokens[proposal.at + accepted :]
                self.held = held[accepted].clone()
                self.reply = Answer(accepted, None, likeliest, (), verdict.work.read)
                return self.reply
            token = replaced(row, proposal.at + accepted, held[accepted], q)
        self._commit(proposal, accepted, token)
        self.reply = Answer(accepted, token, likeliest, verdict.distances, verdict.work.read)
        return self.reply

    def _commit(self, proposal: Proposal, accepted: int, token: int) -> None:
        self.row.tokens[proposal.at :] = [*proposal.draft[:accepted], token]
        self.row.committed = len(self.row.tokens)


def cells(sessions: Sequence[Session]) -> int:
    """Tokens there must be room for, so that all of these have a row."""
    if not sessions:
        return 0
    widest = max(len(each.source) for each in sessions) + max(each.longest for each in sessions)
    return len(sessions) * widest


def _distribution(proposal: Proposal, accepted: int, held: Tensor) -> Tensor | None:
    """The device's distribution at the first rejected token, as far as it is known."""
    if proposal.certain:
        certain = torch.zeros_like(held[accepted])
        certain[proposal.draft[accepted]] = 1
        return certain
    return proposal.row
