"""The server around the application: deadlines for what arrives, and a shutdown that loses nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from bild.errors import InputError, reason
from bild.serving.app import build_app
from bild.serving.served import Served
from bild.serving.service import Service

CONNECTIONS = 1024
KEEP_ALIVE_S = 75
"""Longer than the proxies in front of it, which would otherwise write into closed connections."""
FLUSH_S = 5
"""How long answers that are complete may take to be sent when the server stops."""
LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Server(uvicorn.Server):
    """Serves until it is told to stop, serves those it has accepted, and ends.

    The first SIGTERM or SIGINT: ``/ready`` says no, new requests are refused, accepted ones are served within
    ``drain_s``. The second: it ends at once.

    Args:
        service: what is behind the application.
        drain_s: how long accepted requests may take once it is told to stop, in seconds.
        app: the application; None: of a pair, see :func:`~bild.serving.app.build_app`.
    """

    def __init__(self, service: Served, drain_s: float, app: ASGIApp | None = None) -> None:
        if app is None:
            assert isinstance(service, Service), "what is no pair brings its application"
            app = build_app(service)
        self.service, self.drain_s = service, drain_s
        self.leaving: float | None = None
        """When it was told to stop, by the monotonic clock."""
        receive_s = service.settings.receive_s
        protocol: Any = type("Protocol", (PunctualProtocol,), {"receive_s": receive_s})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=service.settings.header_bytes,
                limit_concurrency=CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FLUSH_S,
            )
        )
        # What it would say of an error holds what the error said.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)

    @property
    def broken(self) -> bool:
        """Whether it ended because its engine broke down."""
        engine = self.service.engine
        return not engine.alive and self.leaving is None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.leaving is not None:
            self.force_exit = self.should_exit = True
            for connection in list(self.server_state.connections):
                # From Python 3.12 on a server is not closed before its connections are.
                connection.loop.call_soon_threadsafe(connection.transport.abort)
        self.leave()

    def leave(self) -> None:
        """Begin to stop."""
        if self.leaving is None:
            self.leaving = time.monotonic()
            self.service.engine.drain()

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        engine = self.service.engine
        if self.leaving is None:
            return not engine.alive
        return engine.load.requests == 0 or time.monotonic() - self.leaving > self.drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.leaving is not None:
            # Whoever is still waiting is told so.
            self.service.engine.stop()
        await super().shutdown(sockets)


class PunctualProtocol(H11Protocol):
    """HTTP whose requests have to begin and to have all their headers in time; the guard looks at the body's time."""

    receive_s: float = 10
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(Gathering(transport, self.loop))  # type: ignore[arg-type]
        self._arm()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._due is None and (before is None or before.response_complete):
            self._arm()
        super().data_received(data)
        if self.cycle is not before:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._due = self.loop.call_later(self.receive_s, self._late)

    def _disarm(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        if not self.transport.is_closing():
            self.transport.write(LATE)
            self.transport.close()


class Gathering:
    """A transport that sends together what is written without the loop coming in between: the head and the body of an
    answer take the system one call instead of two, and their client wakes up once.

    Args:
        transport: sends it.
        loop: whose turns they are.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._held = transport, loop, list[bytes]()

    def write(self, data: bytes) -> None:
        """Send it at the loop's next turn."""
        if data:
            if not self._held:
                self._loop.call_soon(self._send)
            self._held.append(data)

    def close(self) -> None:
        """Close it behind all that was written."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, []
        if held:
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: address or name.
        port: 0…65535; 0: any that is free.

    Raises:
        InputError: it cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once on sockets that say they are TCP; others wait 40 ms for each other's acknowledgements.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(CONNECTIONS)
        return listening
    except (OSError, OverflowError) as error:
        listening.close()
        said = reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot listen on {host} port {port}: {said}; name another with --host and --port") from None
