"""What goes wrong with a request, as its client is told: OpenAI's error object, or LibreTranslate's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from bild.data.json_text import to_json
from bild.engine import Failed
from bild.errors import BusyError, InputError, StoppedError, TooLongError, one_line

PLAIN = ("/translate", "/languages", "/detect")
"""Paths whose errors are LibreTranslate's: ``{"error": text}``."""
RETRY_S = 5


class Problem(Exception):
    """An answer other than what was asked for.

    Args:
        status: of HTTP.
        kind: OpenAI's ``type`` of the error.
        message: one line, for the client; never holds a text or what an exception said.
        param: field that is to blame.
        code: OpenAI's ``code``.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param, self.code = status, kind, message, param, code
        self.headers = {} if headers is None else dict(headers)

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def answer(self, path: str) -> Response:
        """As an answer on this path."""
        if path not in PLAIN:
            return answer(self.body(), self.status, self.headers)
        # Clients of LibreTranslate know 429, and take 401 and 503 for something unheard of.
        status = {401: 403, 503: 429 if self.kind == "overloaded_error" else 503}.get(self.status, self.status)
        return answer({"error": self.message}, status, self.headers)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(to_json(value).encode(), status, headers, "application/json")


def bad(message: str, param: str | None = None, code: str | None = None) -> Problem:
    """Something the client has to change."""
    return Problem(400, "invalid_request_error", message, param=param, code=code)


def no_key() -> Problem:
    """No key, or a wrong one."""
    return Problem(
        401,
        "invalid_request_error",
        "no valid API key; send it as 'Authorization: Bearer KEY'",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def late() -> Problem:
    """A request that took longer than a request may."""
    return Problem(
        408,
        "timeout_error",
        "the request took longer than a request may; ask for less at once",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


def unavailable(message: str, retry_s: float = RETRY_S, kind: str = "unavailable_error") -> Problem:
    """Something that will have passed."""
    return Problem(503, kind, message, headers={"Retry-After": str(math.ceil(retry_s))})


def of_failure(event: Failed) -> Problem:
    """What a client is told of a text that will not come."""
    if event.failure == "row":
        return Problem(500, "server_error", "the text could not be decoded", code="decoding_failed")
    return unavailable("the server stopped while the text was decoded; try again")


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, TooLongError):
        return bad(one_line(error), code="context_length_exceeded")
    if isinstance(error, InputError):
        return bad(one_line(error))
    if isinstance(error, BusyError):
        return unavailable(one_line(error), error.retry_after_s, "overloaded_error")
    if isinstance(error, StoppedError):
        return unavailable(one_line(error))
    if isinstance(error, TimeoutError):
        return late()
    return Problem(500, "server_error", "the server made a mistake; its log has more under this request's id")
