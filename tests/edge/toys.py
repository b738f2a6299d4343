"""A verifier of toys that is asked by JSON, but without a network: requests may get lost, and verifiers die."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bild.decoding import Batch, Choice, Commit, ModelDrafter, Policy, Request, Row, Rules
from bild.edge.connection import GoneError, Traffic
from bild.edge.remote import RemoteVerifier, Terms
from bild.edge.sessions import Refusal
from bild.edge.verification import Limits, Verification
from bild.edge.wire import CLOSE, GONE, OPEN, ROUNDS, Opening, Proposal, compact
from bild.engine import Job
from bild.errors import VerifierError
from bild.generation.verifying import Texts
from tests.engine.toys import LARGE, SMALL, Clock
from tests.toy import ToyScorer


class ToyLarge:
    """As much of a large model as verifying asks for."""

    device, vocab_size, is_encoder_decoder = torch.device("cpu"), 7, False
    max_positions = max_source_positions = None

    def __init__(self, trouble: Callable[[list[list[int]]], None] = lambda read: None) -> None:
        self.passes, self.widest, self.trouble = 0, 0, trouble

    def start(self, sources: Sequence[Sequence[int]]) -> ToyScorer:
        large = self

        class Scorer(ToyScorer):
            def extend(self, tokens, last=1):
                large.passes += 1
                large.widest = max(large.widest, sum(map(bool, tokens)))
                large.trouble([[*old, *new] for old, new in zip(self.read, tokens, strict=True)])
                return super().extend(tokens, last)

        return Scorer(LARGE, len(sources))


@dataclass
class Loop:
    """A channel to a verification in this process; what is sent is JSON all the same."""

    model: ToyLarge = field(default_factory=ToyLarge)
    limits: Limits = field(default_factory=Limits)
    url: str = "loop"
    traffic: Traffic = field(default_factory=Traffic)
    lose: Callable[[str], bool] = lambda path: False
    """Whether the answer to this request is lost, so that it is asked again."""
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Kill the verifier and start another one."""
        self.engine, self.down = Verification(self.model, self.limits, self.clock), False

    def send(self, path: str, body: Any = None) -> Any:
        raw = compact(body)
        self.traffic.requests += 1
        self.traffic.bytes_up += len(raw)
        answer = self._answered(path, json.loads(raw))
        if self.lose(path):
            self.traffic.retries += 1
            answer = self._answered(path, json.loads(raw))
        back = compact(answer)
        self.traffic.bytes_down += len(back)
        return json.loads(back)

    def _answered(self, path: str, body: Any) -> Any:
        if self.down:
            raise VerifierError("the verifier at loop cannot be reached")
        if path == OPEN:
            openings = [Opening.read(each, 7) for each in body["sessions"]]
            return {"sessions": self.engine.open([Texts(self.model).row(each) for each in openings])}
        if path == CLOSE:
            return {"closed": self.engine.close(body["sessions"])}
        assert path == ROUNDS
        return {"answers": self.judged([Proposal.read(each, 7) for each in body["rounds"]])}

    def judged(self, proposals: Sequence[Proposal]) -> list[Any]:
        found: dict[int, Any] = {}
        self.engine.ask(proposals, found.update)
        while self.engine.step():
            pass
        for reply in found.values():
            if isinstance(reply, Refusal):
                raise (GoneError if reply.code == GONE else VerifierError)(reply.message)
        return [found[at].to_dict(proposal.draft) for at, proposal in enumerate(proposals)]


def far_batch(
    loop: Loop, requests: Sequence[Request], policy: Policy, choice: Choice, options: dict[str, Any]
) -> Batch:
    """Rows whose large model is at the other end."""
    rows = [Row(index, request, Rules(policy, choice)) for index, request in enumerate(requests)]
    jobs = [Job([], request, options=options) for request in requests]
    verifier = RemoteVerifier.of(loop, Terms(7, None, torch.float64), jobs)
    return Batch(rows, verifier, ModelDrafter(ToyScorer(SMALL, len(rows))), 7)


def run(batch: Batch, watch: Callable[[], None] = lambda: None) -> list[list[Commit]]:
    """All commits by row; ``watch`` is called between rounds."""
    found: dict[int, list[Commit]] = {row.index: [] for row in batch.rows}
    while batch.rows:
        for commit in batch.round():
            found[commit.row].append(commit)
        watch()
    return list(found.values())


def tokens(commits: Sequence[Commit]) -> list[int]:
    return [token for commit in commits for token in commit.tokens]
