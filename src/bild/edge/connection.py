"""One connection to a verifier: requests that are asked again when they are lost, and what they weigh."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from bild.edge.wire import GONE, NO_NUMBERS, OTHER_MODEL, OTHER_PAIR, compact
from bild.errors import BildError, InputError, ScoreError, VerifierError, VocabularyError, one_line, reason

KEY = "BILD_API_KEY"
DEFAULT_TIMEOUT_S = 30.0
LARGEST = 1 << 26
"""Bytes of an answer at most."""
PAUSE_S = 0.2
"""Before a lost request is asked again; twice that before the next time."""


class GoneError(BildError):
    """The verifier does not know a text any more."""


@dataclass
class Traffic:
    """What has crossed the network for texts: the bodies of requests and answers; headers are some 300 bytes a request
    more, and what a verifier says of itself when it is called is not counted."""

    requests: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    retries: int = 0


class Channel(Protocol):
    """Brings requests to a verifier."""

    traffic: Traffic

    @property
    def url(self) -> str:
        """Where it is."""

    def send(self, path: str, body: Any = None) -> Any:
        """Ask, and wait for the answer.

        Args:
            path: of the request.
            body: JSON values; None: a GET.

        Raises:
            GoneError: it does not know a text.
            VerifierError: it cannot be reached, or answers with what it should not.
        """


@dataclass(eq=False)
class Connection:
    """HTTP to one address; one request at a time.

    Args:
        url: ``http://HOST:PORT`` or ``https://…``.
        timeout_s: longest wait for an answer, in seconds, above 0.
        attempts: how often a request is tried that is not answered, 1…; twice at most where it took too long.
        key: sent as a bearer; None: what ``$BILD_API_KEY`` says.
        sleep: waits; another one in tests.

    Raises:
        InputError: no such address, or a value out of range.
    """

    url: str
    timeout_s: float = DEFAULT_TIMEOUT_S
    attempts: int = 4
    key: str | None = None
    sleep: Callable[[float], None] = time.sleep
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.query or parts.fragment:
            raise InputError(f"verifier is {self.url!r}; allowed is an address as in http://127.0.0.1:8001")
        if not self.timeout_s > 0:
            raise InputError(f"verifier timeout is {self.timeout_s:g} s; allowed is more than 0")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._http = kind(parts.hostname, port, timeout=self.timeout_s)
        self._prefix, self._lock = parts.path.rstrip("/"), threading.Lock()
        self._headers = {"Content-Type": "application/json"}
        weakref.finalize(self, self._http.close)
        key = os.environ.get(KEY) if self.key is None else self.key
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def send(self, path: str, body: Any = None) -> Any:
        raw = None if body is None else compact(body)
        with self._lock:
            for attempt in range(self.attempts):
                if attempt:
                    self.traffic.retries += 1
                    self.sleep(PAUSE_S * 2 ** (attempt - 1))
                try:
                    status, answer = self._fresh(path, raw)
                except (OSError, http.client.HTTPException) as error:
                    self._http.close()
                    failure = self._lost(error)
                    if isinstance(error, TimeoutError) and attempt:
                        break
                    continue
                if status != 503:
                    return self._read(status, answer)
                # It is busy or being started anew.
                failure = VerifierError(f"the verifier at {self.url} takes on nothing: {_message(answer)}")
        raise failure

    def _fresh(self, path: str, raw: bytes | None) -> tuple[int, bytes]:
        """Ask on the connection there is or, if the other end has hung up since, on a new one."""
        if self._http.sock is not None:
            try:
                return self._once(path, raw)
            except (ConnectionError, http.client.HTTPException):
                self._http.close()
        return self._once(path, raw)

    def close(self) -> None:
        """Hang up; the next request calls again."""
        self._http.close()

    def _once(self, path: str, raw: bytes | None) -> tuple[int, bytes]:
        end = time.monotonic() + self.timeout_s
        if self._http.sock is None:
            self._http.connect()
            connected: Any = self._http.sock
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http.request("GET" if raw is None else "POST", self._prefix + path, raw, self._headers)
        response = self._http.getresponse()
        pieces, size = [], 0
        while piece := response.read1(1 << 16):
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST or time.monotonic() > end:
                # A server that trickles would hold the device for ever.
                raise TimeoutError("the answer does not end")
        if response.length:
            # An answer that was cut ends like any other here.
            raise http.client.IncompleteRead(b"".join(pieces), response.length)
        # Nothing is left; only this tells http.client so.
        response.read()
        if raw is not None:
            self.traffic.requests += 1
            self.traffic.bytes_up += len(raw)
            self.traffic.bytes_down += size
        return response.status, b"".join(pieces)

    def _lost(self, error: Exception) -> VerifierError:
        if isinstance(error, TimeoutError):
            said = f"it did not answer within {self.timeout_s:g} s"
        else:
            said = reason(error) if isinstance(error, OSError) else one_line(error)
        return VerifierError(
            f"the verifier at {self.url} cannot be reached ({said}); start it with bild verify-server, "
            "or decode without --verifier"
        )

    def _read(self, status: int, raw: bytes) -> Any:
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            value = None
        if status == 200 and isinstance(value, dict):
            return value
        error = value.get("error") if isinstance(value, dict) else None
        if not isinstance(error, dict):
            raise VerifierError(f"what answers at {self.url} is no verifier (HTTP {status}); name a bild verify-server")
        raise self._told(status, str(error.get("code")), str(error.get("message"))[:500])

    def _told(self, status: int, code: str, message: str) -> BildError:
        """The error that a verifier's words stand for."""
        if code == GONE:
            return GoneError(message)
        if code == NO_NUMBERS:
            return ScoreError(message)
        if code == OTHER_PAIR:
            return VocabularyError(message)
        if code == OTHER_MODEL:
            return VerifierError(f"the verifier at {self.url} {message}")
        if status == 401:
            return VerifierError(f"the verifier at {self.url} asks for a key; put it into ${KEY}")
        if status == 404:
            return VerifierError(f"what answers at {self.url} is no verifier (HTTP 404); name a bild verify-server")
        if status == 400:
            return InputError(f"the verifier at {self.url} refuses: {message}")
        return VerifierError(f"the verifier at {self.url} failed: {message}")


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "HTTP 503"
