"""The device's end: a :class:`~bild.decoding.Verifier` whose large model is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bild.decoding import Draft, Row, Verdict, Work, Writer
from bild.edge.connection import Channel, GoneError
from bild.edge.numbers import asks, check_rule, numbers_of
from bild.edge.wire import CLOSE, OPEN, ROUNDS, Answer, Opening, Proposal
from bild.engine import Job
from bild.errors import InputError, VerifierError, one_line

REOPENED = 3
"""How often a text is opened anew for one round."""


@dataclass(frozen=True)
class Terms:
    """What this device and its verifier have agreed on.

    Args:
        vocab_size: token ids that both models know are below.
        vocabulary: digest of the device's; None: it has no tokenizer.
        kind: in which probabilities are read.
        identity: of the verifier's model, as it calls it; None: it does not say.
    """

    vocab_size: int
    vocabulary: str | None
    kind: torch.dtype = torch.float32
    identity: str | None = None


@dataclass(eq=False)
class _Text:
    job: Job
    session: str | None = None


@dataclass
class RemoteVerifier:
    """Has drafts judged by a verifier elsewhere, all rows in one request.

    A text is opened when it is first judged, and again, with all that is final of it, when the verifier has lost it.

    Args:
        channel: to the verifier.
        terms: agreed with it.
        texts: what each row is made of.
    """

    channel: Channel
    terms: Terms
    texts: list[_Text] = field(default_factory=list)

    @classmethod
    def of(cls, channel: Channel, terms: Terms, jobs: Sequence[Job]) -> RemoteVerifier:
        """For rows that have read nothing."""
        return cls(channel, terms, [_Text(job) for job in jobs])

    def verify(self, rows: Sequence[Row], drafts: Sequence[Draft | None]) -> list[Verdict | None]:
        verdicts: list[Verdict | None] = [None] * len(rows)
        asked = [b for b, draft in enumerate(drafts) if draft is not None]
        if not asked:
            return verdicts
        answers = self._judged(rows, drafts, asked)
        for b, answer in zip(asked, answers, strict=True):
            assert answer.token is not None
            verdicts[b] = Verdict(
                answer.accepted, answer.token, answer.distances, answer.likeliest, "large", Work(1, answer.read)
            )
        return verdicts

    def write(self, rows: Sequence[Row]) -> list[dict[Writer, Work]] | None:
        return None

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        return True

    def truncate(self, lengths: Sequence[int]) -> None:
        """Nothing: every round says where it begins."""

    def keep(self, rows: Sequence[int]) -> None:
        gone = [text for b, text in enumerate(self.texts) if b not in set(rows)]
        self.texts = [self.texts[b] for b in rows]
        self._close([text.session for text in gone if text.session is not None])

    def join(self, other: RemoteVerifier) -> None:
        self.texts = self.texts + other.texts

    def _judged(self, rows: Sequence[Row], drafts: Sequence[Draft | None], asked: Sequence[int]) -> list[Answer]:
        for _ in range(REOPENED):
            self._open(rows, asked)
            try:
                return self._round(rows, drafts, asked)
            except GoneError:
                # It was started anew, or took this device for one that has vanished.
                self._close([session for b in asked if (session := self.texts[b].session) is not None])
                for b in asked:
                    self.texts[b].session = None
        raise VerifierError(f"the verifier at {self.channel.url} loses the texts it is given; look at its log")

    def _open(self, rows: Sequence[Row], asked: Sequence[int]) -> None:
        new = [b for b in asked if self.texts[b].session is None]
        if not new:
            return
        sessions = [self._opening(rows[b], self.texts[b].job).to_dict() for b in new]
        agreed = {"vocabulary": self.terms.vocabulary, "identity": self.terms.identity}
        ids = self._send(OPEN, {**agreed, "sessions": sessions}, "sessions", len(new))
        for b, id in zip(new, ids, strict=True):
            self.texts[b].session = str(id)

    def _opening(self, row: Row, job: Job) -> Opening:
        request, rules = row.request, row.rules
        check_rule(rules.acceptance)
        if rules.choice.draws and request.generator is None:
            raise InputError(
                "a row that draws has no generator of its own; give it one, whose seed a verifier can share"
            )
        seed = request.generator.initial_seed() if rules.choice.draws and request.generator is not None else None
        return Opening(
            source=job.source,
            prompt=request.prompt,
            text=row.tokens[row.prompt_length : row.committed],
            acceptance=_written(row),
            options=job.options,
            max_new_tokens=request.max_new_tokens,
            vocab_size=self.terms.vocab_size,
            seed=seed,
        )

    def _round(self, rows: Sequence[Row], drafts: Sequence[Draft | None], asked: Sequence[int]) -> list[Answer]:
        proposals = {b: self._proposal(rows[b], drafts[b], self.texts[b].session) for b in asked}
        answers = self._ask(proposals)
        # What replaces a rejected token is drawn once both distributions are in one place.
        short = {b: answer.accepted for b, answer in answers.items() if answer.token is None}
        if short:
            more = {b: self._with_row(rows[b], drafts[b], proposals[b], at) for b, at in short.items()}
            answers |= self._ask(more)
        if any(answer.token is None for answer in answers.values()):
            raise VerifierError(f"the verifier at {self.channel.url} asks for a distribution twice")
        return [answers[b] for b in asked]

    def _proposal(self, row: Row, draft: Draft | None, session: str | None) -> Proposal:
        assert draft is not None and session is not None
        rules = row.rules
        numbers = numbers_of(rules.acceptance, rules.choice, draft, self.terms.kind)
        certain = draft.certain and asks(rules.acceptance, rules.choice)
        return Proposal(session, row.committed, tuple(draft.tokens), tuple(numbers), certain)

    def _with_row(self, row: Row, draft: Draft | None, proposal: Proposal, at: int) -> Proposal:
        assert draft is not None
        q = row.rules.choice.probabilities(draft.logits[at].to(self.terms.kind)[None])[0]
        return Proposal(proposal.session, proposal.at, proposal.draft, proposal.numbers, False, q)

    def _ask(self, proposals: dict[int, Proposal]) -> dict[int, Answer]:
        body = {"rounds": [proposal.to_dict() for proposal in proposals.values()]}
        found = self._send(ROUNDS, body, "answers", len(proposals))
        try:
            return {
                b: Answer.read_from(value, proposal.draft, self.terms.vocab_size)
                for (b, proposal), value in zip(proposals.items(), found, strict=True)
            }
        except InputError as error:
            raise VerifierError(f"the verifier at {self.channel.url} answers amiss: {one_line(error)}") from None

    def _close(self, sessions: Sequence[str]) -> None:
        if not sessions:
            return
        try:
            self.channel.send(CLOSE, {"sessions": list(sessions)})
        except (GoneError, VerifierError):
            # The texts are complete; what is left of them there ends by itself.
            return

    def _send(self, path: str, body: Any, field: str, count: int) -> list[Any]:
        found = self.channel.send(path, body).get(field)
        if not isinstance(found, list) or len(found) != count:
            raise VerifierError(f"the verifier at {self.channel.url} answers amiss: no {count} {field}")
        return found


def _written(row: Row) -> dict[str, Any]:
    """The acceptance rule as JSON values."""
    policy = row.rules.policy
    if policy.alone is not None:
        return {"rule": "exact_match"}
    written: dict[str, Any] = policy.to_dict()["acceptance"]
    return written
