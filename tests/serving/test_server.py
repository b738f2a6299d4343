"""A real server on loopback: official clients, clients that vanish, dawdle or send nonsense, and how it stops."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import libretranslatepy
import openai
import pytest
import torch

from bild.cli.serve import uncompiled
from bild.engine import Limits
from bild.errors import InputError
from bild.serving.server import Gathering, listen
from tests.serving.conftest import is_idle, wait_until

TEXTS = ["w7 w8 w9", "w3", "w20 w21 w22 w23 w5 w6", "w11 w12"]


@pytest.fixture
def api(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_s_client(api, pair):
    expected = [result.text for result in pair.generate(TEXTS, max_new_tokens=12)]
    answer = api.completions.create(model="bild", prompt=TEXTS, max_tokens=12)
    assert [choice.text for choice in answer.choices] == expected
    stream = api.completions.create(model="bild", prompt=TEXTS[2], max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected[2]
    turn = [{"role": "user", "content": TEXTS[0]}]
    chat = api.chat.completions.create(model="bild", messages=turn, max_completion_tokens=12)
    assert chat.choices[0].message.content == expected[0] and chat.choices[0].finish_reason == "length"
    pieces = api.chat.completions.create(
        model="bild", messages=turn, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    *said, last = list(pieces)
    assert "".join(c.choices[0].delta.content for c in said if c.choices[0].delta.content) == expected[0]
    assert last.usage.completion_tokens == 12 and last.choices == []
    assert [model.id for model in api.models.list()] == ["bild"]
    exact = api.completions.create(
        model="bild", prompt=TEXTS[1], max_tokens=12, extra_body={"policy": "exact", "lossless": True}
    )
    assert exact.choices[0].text == pair.generate(TEXTS[1], "exact", max_new_tokens=12)[0].text


def test_openai_s_client_raises_its_own_errors(api):
    with pytest.raises(openai.BadRequestError, match="frequency_penalty is not supported"):
        api.completions.create(model="bild", prompt="w7", frequency_penalty=1)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-9'"):
        api.completions.create(model="gpt-9", prompt="w7")


def test_openai_s_asynchronous_client_many_at_once(server, pair):
    expected = [result.text for result in pair.generate(TEXTS, max_new_tokens=12)]

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def whole(at):
                answer = await client.completions.create(model="bild", prompt=TEXTS[at], max_tokens=12)
                return answer.choices[0].text

            async def streamed(at):
                stream = await client.completions.create(model="bild", prompt=TEXTS[at], max_tokens=12, stream=True)
                return "".join([chunk.choices[0].text async for chunk in stream])

            asked = [(each, at % 4) for at in range(20) for each in (whole, streamed)]
            return await asyncio.gather(*[each(at) for each, at in asked])

    assert asyncio.run(ask()) == [expected[at % 4] for at in range(20) for _ in range(2)]
    wait_until(lambda: is_idle(server.service))


def test_libretranslate_s_client(server, pair):
    client = libretranslatepy.LibreTranslateAPI(server.url)
    assert client.translate("w7 w8", "de", "en") == pair.generate("w7 w8")[0].text
    assert client.detect("w7")[0]["language"] == "de"
    assert [each["code"] for each in client.languages()] == ["de", "en"]


def raw(port: int, sent: bytes, *, wait_s: float = 5, half_close: bool = False) -> bytes:
    """What comes back for these bytes until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        received = b""
        try:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
        return received


def request(body: bytes, path: str = "/v1/completions", more: str = "Connection: close\r\n") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"{more}Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", b"413"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n", b"413"),
        (b"POST /translate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (request(b"\x00\xff"), b"400"),
    ],
)
def test_nonsense_is_refused_and_harms_nobody(server, api, sent, status):
    answer = raw(server.port, sent)
    assert answer.split(b" ")[1] == status
    assert api.completions.create(model="bild", prompt="w7", max_tokens=1).choices
    assert is_idle(server.service)


def test_answers_are_not_held_back(server):
    # asyncio turns Nagle's algorithm off on sockets that say they are TCP only; with it the body of an answer waits
    # 40 ms for the acknowledgement of the headers.
    assert server.socket.proto == socket.IPPROTO_TCP


class Transport:
    """Remembers what was done to it."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


def test_a_head_and_its_body_are_sent_together():
    async def run():
        transport = Transport()
        gathering = Gathering(transport, asyncio.get_running_loop())
        gathering.write(b"head, ")
        gathering.write(b"body")
        gathering.write(b"")
        assert transport.done == [] and not gathering.is_closing()
        await asyncio.sleep(0)
        assert transport.done == [b"head, body"]
        # What was written before an end is sent before it, and nothing behind it.
        gathering.write(b"last")
        gathering.close()
        await asyncio.sleep(0)
        assert transport.done == [b"head, body", b"last", "closed"] and gathering.is_closing()

    asyncio.run(run())


def test_an_address_that_is_taken_is_said_so(server):
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1 port {server.port}: Address already in use"):
        listen("127.0.0.1", server.port)
    with pytest.raises(InputError, match=r"cannot listen on 127.0.0.1 port 70000"):
        listen("127.0.0.1", 70000)


def test_pipelined_requests_are_answered_in_order(server):
    body = json.dumps({"prompt": "w7", "max_tokens": 2}).encode()
    answer = raw(
        server.port,
        request(body, more="X-Request-Id: a1\r\n") + request(body, more="X-Request-Id: a2\r\nConnection: close\r\n"),
    )
    assert answer.count(b"HTTP/1.1 200") == 2 and answer.index(b"a1") < answer.index(b"a2")


def test_a_half_closed_connection_ends(server):
    raw(server.port, request(b'{"prompt": "w7", "max_tokens": 400, "stream": true}'), half_close=True)
    wait_until(lambda: is_idle(server.service))


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"]
)
def test_whoever_dawdles_is_cut_off(run, sent):
    server = run(receive_s=0.3)
    start = time.monotonic()
    answer = raw(server.port, sent)
    assert answer.split(b" ")[1] == b"408" and time.monotonic() - start < 3
    assert not server.server.server_state.connections


def test_a_byte_at_a_time_is_cut_off_too(run):
    server = run(receive_s=0.4)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            for byte in b"GET /health HTTP/1.1\r\nHost: " + b"x" * 1000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 3


def test_a_client_that_does_not_read_is_cut_off(run):
    server = run(Limits(rows=4, cells=200_000), send_s=0.3)
    # Of its connections: else the system takes megabytes of what nobody reads.
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = json.dumps(
        {
            "prompt": ["w7"] * 4,
            "max_tokens": 20_000,
            "stream": True,
            "policy": "large",
            "ignore_eos": True,
            "bild": {"trace": True},
        }
    )
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request(body.encode()))
        wait_until(lambda: server.service.engine.load.rows == 4)
        wait_until(lambda: is_idle(server.service), 30)


def test_clients_that_vanish_leave_nothing_behind(server, api, pair):
    rng = random.Random(4)
    lost = json.dumps({"prompt": ["w7", "w8 w9"] * 3, "max_tokens": 400, "ignore_eos": True, "stream": False})
    streamed = lost.replace('"stream": false', '"stream": true')

    def vanish():
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            whole = request(rng.choice([lost, streamed]).encode())
            connection.sendall(whole[: rng.choice([20, len(whole) - 3, len(whole), len(whole)])])
            time.sleep(rng.random() * 0.05)
            if rng.random() < 0.5:
                # A reset in place of a polite end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    expected = pair.generate(TEXTS[0], max_new_tokens=12)[0].text
    threads = [threading.Thread(target=vanish) for _ in range(40)]
    for at, thread in enumerate(threads):
        thread.start()
        if at % 10 == 0:
            found = api.completions.create(model="bild", prompt=TEXTS[0], max_tokens=12)
            assert found.choices[0].text == expected
    for thread in threads:
        thread.join(20)
    wait_until(lambda: is_idle(server.service))
    assert server.service.engine.healthy()


def test_a_burst_is_refused_at_once_and_a_client_that_comes_back_is_served(run, pair):
    server = run(Limits(rows=1, queue=3))

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one():
                try:
                    answer = await client.completions.create(
                        model="bild", prompt="w7", max_tokens=60, extra_body={"ignore_eos": True}
                    )
                    return answer.choices[0].text
                except openai.InternalServerError as error:
                    assert error.status_code == 503 and int(error.response.headers["retry-after"]) >= 1
                    return None

            return await asyncio.gather(*[one() for _ in range(30)])

    texts = asyncio.run(ask())
    served = [text for text in texts if text is not None]
    assert served == [pair.generate("w7", max_new_tokens=60, eos_token_id=-1)[0].text] * len(served)
    assert 3 <= len(served) < 30
    wait_until(lambda: is_idle(server.service))


def test_stopping_serves_whoever_was_accepted(run, pair):
    # However slow the machine is: this is about what is served, not about how long it may take.
    server = run(Limits(rows=1), drain_s=120)
    expected = pair.generate("w7", max_new_tokens=200, eos_token_id=-1)[0].text
    found = []

    def ask(stream):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            options = {"model": "bild", "prompt": "w7", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
            if stream:
                found.append("".join(c.choices[0].text for c in client.completions.create(stream=True, **options)))
            else:
                found.append(client.completions.create(**options).choices[0].text)

    threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False, True)]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.service.engine.load.requests == 3)
    server.stop()
    for thread in threads:
        thread.join(120)
    assert found == [expected] * 3
    assert not server.server.broken and not server.service.engine.alive


def test_a_second_signal_ends_it_at_once(run):
    server = run(drain_s=60)
    body = json.dumps({"prompt": "w7", "max_tokens": 8000, "stream": True, "policy": "large", "ignore_eos": True})
    answers = []
    thread = threading.Thread(target=lambda: answers.append(raw(server.port, request(body.encode()), wait_s=20)))
    thread.start()
    wait_until(lambda: server.service.engine.load.rows == 1)
    server.server.handle_exit(signal.SIGTERM, None)
    wait_until(lambda: server.service.engine.draining)
    server.thread.join(0.2)
    assert server.thread.is_alive()
    server.server.handle_exit(signal.SIGTERM, None)
    server.thread.join(5)
    thread.join(5)
    assert not server.thread.is_alive() and not thread.is_alive() and b"[DONE]" not in answers[0]
    wait_until(lambda: not server.service.engine.alive)


def test_whoever_is_not_done_when_time_is_up_is_told_so(run):
    server = run(drain_s=0.2)
    body = json.dumps({"prompt": "w7", "max_tokens": 8000, "stream": True, "policy": "large", "ignore_eos": True})
    answers = []
    thread = threading.Thread(target=lambda: answers.append(raw(server.port, request(body.encode()), wait_s=20)))
    thread.start()
    wait_until(lambda: server.service.engine.load.rows == 1)
    server.stop()
    thread.join(20)
    assert b'"type": "unavailable_error"' in answers[0] and b"data: [DONE]" in answers[0]


def test_a_broken_engine_ends_the_server(run, monkeypatch):
    server = run()

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(server.service.engine, "step", killed)
    answer = raw(server.port, request(b'{"prompt": "w7"}'))
    assert answer.split(b" ")[1] == b"503"
    server.thread.join(10)
    assert not server.thread.is_alive() and server.server.broken


def test_a_server_that_runs_uncompiled_says_so():
    def pair(compiled: bool, device: str = "cpu") -> Any:
        return SimpleNamespace(large=SimpleNamespace(is_compiled=compiled, device=torch.device(device)))

    assert uncompiled(pair(False), "auto").startswith(
        f"note: the pair runs uncompiled; OMP_NUM_THREADS={torch.get_num_threads()} bild warmup"
    )
    for decoder, runtime in ((pair(True), "auto"), (pair(False), "eager"), (pair(False, "cuda"), "auto")):
        assert uncompiled(decoder, runtime) is None


def test_the_program_serves_and_stops_on_sigterm():
    command = [sys.executable, "-m", "bild", "serve", "--port", "0", "--runtime", "eager", "--dtype", "float32"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        try:
            line = program.stderr.readline()
            assert line.startswith("serving de-en on http://127.0.0.1:"), line
            client = libretranslatepy.LibreTranslateAPI(line.split()[-1])
            assert client.translate("Wie spät ist es?", "de", "en") == "What time is it?"
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
            logged = program.stderr.read()
            assert (
                json.loads(logged.splitlines()[0])["status"] == 200 and "spät" not in logged and "time is" not in logged
            )
        finally:
            program.kill()
