"""Addresses where nobody is, where somebody else is, and where somebody is too slow."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bild.edge.connection import Connection, GoneError
from bild.errors import InputError, ScoreError, VerifierError, VocabularyError


def answer(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


@contextmanager
def server(behave: Callable[[int, socket.socket], None]) -> Iterator[str]:
    """A socket whose connections, counted, are treated so."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        count = 0
        while True:
            try:
                connected, _ = listening.accept()
            except OSError:
                return
            with connected:
                behave(count, connected)
            count += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


def saying(raw: bytes) -> Callable[[int, socket.socket], None]:
    def behave(count: int, connected: socket.socket) -> None:
        connected.recv(1 << 16)
        connected.sendall(raw)
        connected.shutdown(socket.SHUT_WR)

    return behave


def connection(url: str, **options) -> Connection:
    return Connection(url, sleep=lambda seconds: None, **options)


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "localhost:80", "http://h:x", "http://h:99999", "http://h/?q=1"]
)
def test_what_is_no_address(url):
    with pytest.raises(InputError, match="allowed is an address as in http://"):
        Connection(url)


def test_where_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = connection(f"http://127.0.0.1:{port}")
    with pytest.raises(
        VerifierError, match=r"cannot be reached \(Connection refused\); start it with bild verify-server"
    ):
        own.send("/v1/verifier")
    assert own.traffic.retries == 3 and own.traffic.requests == 0


def test_who_is_too_slow_is_waited_for_twice():
    waited = []

    def behave(count: int, connected: socket.socket) -> None:
        waited.append(count)
        while connected.recv(1 << 16):
            pass

    with server(behave) as url:
        own = connection(url, timeout_s=0.05)
        with pytest.raises(VerifierError, match=r"did not answer within 0.05 s"):
            own.send("/v1/verifier/rounds", {})
        assert own.traffic.retries == 1
    with pytest.raises(InputError, match="more than 0"):
        connection(url, timeout_s=0)


def test_a_connection_that_breaks_is_made_anew():
    def behave(count: int, connected: socket.socket) -> None:
        while not connected.recv(1 << 16).endswith(b"}"):
            pass
        if count == 1:
            # Cut in its body.
            connected.sendall(answer(200, b'{"fine": true}')[:-5])
        if count == 2:
            connected.sendall(answer(200, b'{"fine": true}'))

    with server(behave) as url:
        own = connection(url)
        assert own.send("/v1/verifier/rounds", {"rounds": []}) == {"fine": True}
        assert own.traffic.retries == 2 and own.traffic.bytes_up == 13 and own.traffic.bytes_down == 14


@pytest.mark.parametrize(
    ("raw", "kind", "says"),
    [
        (answer(200, b"<html>"), VerifierError, "is no verifier"),
        (answer(200, b"[1]"), VerifierError, "is no verifier"),
        (answer(404, b'{"error": {"message": "?", "code": null}}'), VerifierError, "is no verifier"),
        (answer(302, b""), VerifierError, "is no verifier"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", VerifierError, "cannot be reached"),
        (answer(401, b'{"error": {"message": "key"}}'), VerifierError, r"asks for a key; put it into \$BILD_API_KEY"),
        (answer(400, b'{"error": {"message": "so not"}}'), InputError, "refuses: so not"),
        (answer(500, b'{"error": {"message": "oh"}}'), VerifierError, "failed: oh"),
        (answer(503, b'{"error": {"message": "full"}}'), VerifierError, "takes on nothing: full"),
        (answer(409, b'{"error": {"message": "?", "code": "session_gone"}}'), GoneError, r"\?"),
        (answer(409, b'{"error": {"message": "v", "code": "other_vocabulary"}}'), VocabularyError, "v"),
        (answer(422, b'{"error": {"message": "nan", "code": "scores_not_numbers"}}'), ScoreError, "nan"),
    ],
)
def test_what_is_answered_instead(raw, kind, says):
    with server(saying(raw)) as url, pytest.raises(kind, match=says) as error:
        connection(url).send("/v1/verifier", None)
    assert "\n" not in str(error.value)


def test_one_connection_carries_many_requests():
    opened = []

    def behave(count: int, connected: socket.socket) -> None:
        opened.append(count)
        while got := connected.recv(1 << 16):
            if got.endswith(b"{}"):
                connected.sendall(answer(200, b"{}"))

    with server(behave) as url:
        own = connection(url)
        assert [own.send("/v1/verifier/rounds", {}) for _ in range(3)] == [{}] * 3
        assert own.traffic.retries == 0 and own.traffic.requests == 3 and opened == [0]
        own.close()


def test_the_key_is_sent(monkeypatch):
    heard = []

    def behave(count: int, connected: socket.socket) -> None:
        heard.append(connected.recv(1 << 16))
        connected.sendall(answer(200, b"{}"))

    monkeypatch.setenv("BILD_API_KEY", "sesame")
    with server(behave) as url:
        connection(url + "/behind/").send("/v1/verifier")
    assert b"Authorization: Bearer sesame" in heard[0] and heard[0].startswith(b"GET /behind/v1/verifier HTTP/1.1")
