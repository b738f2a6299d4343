"""What stands before every request: its id, its key, its size, the time it takes to arrive, and a line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bild.serving.following import GoneError
from bild.serving.problems import Problem, no_key, problem_of
from bild.serving.served import Served
from bild.serving.sse import SlowError

logger = logging.getLogger("bild.serving")
OPEN = ("/health", "/ready", "/")
"""Paths that need no key: the page holds nothing, and asks with the key that is typed into it."""
KEY_INSIDE = ("/translate", "/detect", "/languages")
"""Paths whose clients may send their key in the body."""
ID = re.compile(rb"[0-9A-Za-z_.:-]{1,128}")
CLOSE = {"Connection": "close"}


class ClosedError(Exception):
    """An answer that has begun and cannot be completed; the server closes the connection."""


class Guard:
    """An application behind the guard. Whatever goes wrong inside is answered, and never with what an exception said.

    Args:
        app: what is guarded.
        service: of the server.
    """

    def __init__(self, app: ASGIApp, service: Served) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        state = scope.setdefault("state", {})
        state["id"] = _id(headers.get(b"x-request-id"))
        path = scope["path"] if len(scope["path"]) < 64 else "…"
        state["log"] = log = {"id": state["id"], "at": round(time.time(), 3), "path": path}
        start, answer = time.perf_counter(), _Answer(send, state["id"])
        try:
            await self._pass(scope, receive, answer, headers)
        finally:
            log |= {"status": answer.status, "ms": round((time.perf_counter() - start) * 1e3, 3)}
            logger.info(json.dumps(log))
            self.service.board.answered(answer.status)

    async def _pass(self, scope: Scope, receive: Receive, answer: _Answer, headers: dict[bytes, bytes]) -> None:
        early: dict[str, str] = CLOSE
        try:
            self._check(scope, headers)
            body = await self._body(receive)
            early = {}
            await self.app(scope, _again(body, receive), answer)
        except GoneError:
            scope["state"]["log"]["gone"] = True
        except SlowError:
            scope["state"]["log"]["gone"] = True
            raise ClosedError from None
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 500 and problem is not error:
                logger.error("request %s failed", scope["state"]["id"], exc_info=_without_text(error))
            if answer.status:
                raise ClosedError from None
            problem.headers |= early
            await problem.answer(scope["path"])(scope, receive, answer)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        path, settings = scope["path"], self.service.settings
        if sum(len(name) + len(value) for name, value in scope["headers"]) > settings.header_bytes:
            raise Problem(431, "invalid_request_error", f"the headers are larger than {settings.header_bytes} bytes")
        given = _key(headers)
        scope["state"]["allowed"], scope["state"]["who"] = settings.keys.allow(given), settings.keys.who(given)
        if not scope["state"]["allowed"] and path not in OPEN and path not in KEY_INSIDE:
            raise no_key()
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > settings.body_bytes:
            raise _too_large(settings.body_bytes)

    async def _body(self, receive: Receive) -> bytes:
        """All of the body, within its size and its time."""
        settings, pieces, size = self.service.settings, [], 0
        try:
            async with asyncio.timeout(settings.receive_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    pieces.append(message.get("body", b""))
                    size += len(pieces[-1])
                    if size > settings.body_bytes:
                        raise _too_large(settings.body_bytes)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            raise Problem(
                408, "timeout_error", f"the request did not arrive within {settings.receive_s:g} s; send it faster"
            ) from None


class _Answer:
    """Sends an answer, marked with the request's id, and remembers its status."""

    def __init__(self, send: Send, id: str) -> None:
        self._send, self._id, self.status = send, id, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self._id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read before, and then whatever comes."""
    given = False

    async def received() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return received


def _key(headers: dict[bytes, bytes]) -> str | None:
    kind, _, bearer = headers.get(b"authorization", b"").partition(b" ")
    given = bearer.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key")
    if given is None:
        return None
    try:
        return given.decode("utf-8")
    except UnicodeDecodeError:
        # As some clients send what is not ASCII.
        return given.decode("latin-1")


def _id(given: bytes | None) -> str:
    return given.decode() if given is not None and ID.fullmatch(given) else secrets.token_hex(16)


def _too_large(limit: int) -> Problem:
    return Problem(413, "invalid_request_error", f"the body is larger than {limit} bytes; send less at once")


def _without_text(error: Exception) -> Any:
    """An error for the log: where it happened, and its kind; what it says may hold a text."""
    return (Exception, Exception(type(error).__name__), error.__traceback__)
