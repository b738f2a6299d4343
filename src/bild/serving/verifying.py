"""A large model that judges what devices draft, over HTTP: ``bild verify-server``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from bild import __version__
from bild.edge.sessions import Refusal, Reply
from bild.edge.verification import Limits, Turn, Verification
from bild.edge.wire import (
    CLOSE,
    DESCRIBE,
    GONE,
    NO_NUMBERS,
    OPEN,
    OTHER_MODEL,
    OTHER_PAIR,
    ROUNDS,
    Opening,
    Proposal,
    compact,
)
from bild.errors import VocabularyError
from bild.generation import BigLittleDecoder
from bild.generation.verifying import Texts, check_vocabulary, describe
from bild.serving.app import failed, quiet
from bild.serving.following import while_connected
from bild.serving.guard import Guard
from bild.serving.problems import Problem, bad
from bild.serving.settings import Settings
from bild.serving.state import add_state

ROUNDS_AT_ONCE = 1024
"""Rounds, or texts, of one request."""
STATUS = {GONE: 409, NO_NUMBERS: 422, "too_long": 400, "stopped": 503}


class VerifyingService:
    """A large model behind its thread; what the server around it needs.

    Args:
        decoder: holds the large model.
        limits: of what is taken on at once.
        settings: what the server was told.
    """

    def __init__(self, decoder: BigLittleDecoder, limits: Limits, settings: Settings) -> None:
        self.settings = settings
        self.description = describe(decoder, settings.model)
        self.vocab_size = decoder.large.vocab_size
        self.texts = Texts(decoder.large)
        self.engine = Verification(decoder.large, limits)
        self.board = VerifyingBoard(self.engine, settings)


class VerifyingBoard:
    """What ``/metrics`` shows of a verifier.

    Args:
        engine: whose passes are counted from now on.
        settings: what names begin with.
    """

    def __init__(self, engine: Verification, settings: Settings) -> None:
        self._registry, prefix = CollectorRegistry(), f"{settings.metrics_prefix}:verifier"
        own: Any = {"registry": self._registry}
        self._answers = Counter(f"{prefix}_http_responses", "Answers by status.", ("status",), **own)
        self._rounds = Counter(f"{prefix}_rounds", "Rounds judged.", **own)
        self._drafted = Counter(f"{prefix}_draft_tokens", "Tokens that devices drafted.", **own)
        self._accepted = Counter(f"{prefix}_accepted_tokens", "Drafted tokens that stayed.", **own)
        self._seconds = Histogram(f"{prefix}_pass_seconds", "One pass of all rounds that share it.", **own)
        self._together = Histogram(
            f"{prefix}_rounds_per_pass", "Rounds that shared a pass.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        for name, help, value in (
            ("sessions", "Texts that are open.", lambda: engine.load.sessions),
            ("rows", "Texts that have a row.", lambda: engine.load.rows),
            ("waiting", "Rounds that wait for a pass.", lambda: engine.load.waiting),
        ):
            Gauge(f"{prefix}_{name}", help, **own).set_function(value)
        engine.watch = self.turn

    def page(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)

    def turn(self, turn: Turn) -> None:
        """Count a pass; on the verifier's thread."""
        self._rounds.inc(turn.rounds)
        self._drafted.inc(turn.drafted)
        self._accepted.inc(turn.accepted)
        self._seconds.observe(turn.seconds)
        self._together.observe(turn.rounds)

    def answered(self, status: int) -> None:
        """Count an answer."""
        self._answers.labels(str(status)).inc()


def build_verifying_app(service: VerifyingService) -> ASGIApp:
    """The application of a verify-server.

    Args:
        service: the large model behind its thread.
    """
    app = FastAPI(title="bild verify-server", version=__version__, docs_url=None, redoc_url=None)
    add_state(app, service, "verifier")
    _add_description(app, service)
    _add_sessions(app, service)
    _add_rounds(app, service)
    for kind in (Exception, Problem, HTTPException):
        app.add_exception_handler(kind, failed)
    return Guard(quiet(app), service)


def _add_description(app: FastAPI, service: VerifyingService) -> None:
    @app.get(DESCRIBE)
    async def described() -> Response:
        return _answered(service.description)

    del described


def _add_sessions(app: FastAPI, service: VerifyingService) -> None:
    @app.post(OPEN)
    async def opened(request: Request) -> Response:
        body = await _body(request, "sessions")
        try:
            check_vocabulary(service.description["vocabulary"], body.get("vocabulary"))
        except VocabularyError as error:
            raise Problem(409, "invalid_request_error", str(error), code=OTHER_PAIR) from None
        if body.get("identity") not in (None, service.description["identity"]):
            said = "holds another model than the one this device agreed with; load the pair anew"
            raise Problem(409, "invalid_request_error", said, code=OTHER_MODEL)
        texts = [service.texts.row(Opening.read(each, service.vocab_size)) for each in body["sessions"]]
        ids = service.engine.open(texts)
        request.state.log.update(opened=len(ids), open=service.engine.load.sessions)
        return _answered({"sessions": ids})

    @app.post(CLOSE)
    async def closed(request: Request) -> Response:
        body = await _body(request, "sessions")
        ids = [each for each in body["sessions"] if isinstance(each, str)]
        return _answered({"closed": service.engine.close(ids)})

    del opened, closed


def _add_rounds(app: FastAPI, service: VerifyingService) -> None:
    @app.post(ROUNDS)
    async def judged(request: Request) -> Response:
        body = await _body(request, "rounds")
        proposals = [Proposal.read(each, service.vocab_size) for each in body["rounds"]]
        if len({each.session for each in proposals}) < len(proposals):
            raise bad("a session is named twice; ask for one round of it at a time")
        replies = await while_connected(request.receive, _asked(service, proposals))
        found = [_value(replies[at], proposal) for at, proposal in enumerate(proposals)]
        request.state.log.update(rounds=len(found), drafted=sum(len(each.draft) for each in proposals))
        return _answered({"answers": found})

    del judged


async def _asked(service: VerifyingService, proposals: list[Proposal]) -> dict[int, Reply]:
    if not proposals:
        return {}
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[dict[int, Reply]] = loop.create_future()

    def tell(replies: dict[int, Reply]) -> None:
        # Whoever asked may have left.
        if not heard.done():
            heard.set_result(replies)

    def hear(replies: dict[int, Reply]) -> None:
        loop.call_soon_threadsafe(tell, replies)

    service.engine.ask(proposals, hear)
    async with asyncio.timeout(service.settings.timeout_s):
        return await heard


def _value(reply: Reply, proposal: Proposal) -> dict[str, Any]:
    if isinstance(reply, Refusal):
        raise Problem(STATUS.get(reply.code, 500), "verifier_error", reply.message, code=reply.code)
    return reply.to_dict(proposal.draft)


async def _body(request: Request, field: str) -> dict[str, Any]:
    """A body that is an object with one list in it."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise bad("the body is not JSON") from None
    if not isinstance(body, dict) or not isinstance(body.get(field), list):
        raise bad(f"the body has no list {field}", field)
    if len(body[field]) > ROUNDS_AT_ONCE:
        raise bad(f"{field} has {len(body[field])} members; allowed are {ROUNDS_AT_ONCE}", field)
    return body


def _answered(value: Any) -> Response:
    """A value in as few bytes as JSON allows: they cross a network for every few tokens."""
    return Response(compact(value), media_type="application/json")
