"""Server-sent events that notice a client who leaves, or reads too slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bild.data.json_text import to_json
from bild.serving.following import closed, left
from bild.serving.problems import problem_of

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
PING = b":\n\n"
DONE = b"data: [DONE]\n\n"


class SlowError(Exception):
    """The client reads too slowly; the connection is closed."""


def event(value: Any) -> bytes:
    """A value as an event."""
    return b"data: " + to_json(value).encode() + b"\n\n"


class EventStream(Response):
    """An answer of events, which ends in ``[DONE]``; what goes wrong is the last event before it.

    Args:
        values: what is sent.
        ended: is called when the answer has ended, however it ended.
        ping_s: silence after which a comment says that the server is still there.
        send_s: how long a client may take to read a piece.
        failed: is told what went wrong.
    """

    def __init__(
        self,
        values: AsyncGenerator[Any],
        *,
        ended: Callable[[], None],
        failed: Callable[[Exception], None],
        ping_s: float,
        send_s: float,
    ) -> None:
        super().__init__(headers=HEADERS, media_type="text/event-stream")
        del self.headers["content-length"]
        self._values, self._ended, self._failed = values, ended, failed
        self._ping_s, self._send_s = ping_s, send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(left(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._run(send, gone)
        finally:
            gone.cancel()
            await closed(self._values)
            self._ended()

    async def _run(self, send: Send, gone: asyncio.Future[None]) -> None:
        following: asyncio.Future[Any] | None = None
        try:
            while not gone.done():
                if following is None:
                    following = asyncio.ensure_future(anext(self._values))
                await asyncio.wait({following, gone}, timeout=self._ping_s, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    ready, following = following, None
                    await self._send(send, event(ready.result()))
                elif not gone.done():
                    await self._send(send, PING)
        except StopAsyncIteration:
            await self._send(send, DONE, more=False)
        except SlowError:
            raise
        except Exception as error:
            self._failed(error)
            await self._send(send, event(problem_of(error).body()) + DONE, more=False)
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._send_s):
                await send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise SlowError from None
