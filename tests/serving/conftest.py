"""A tiny pair behind the application, without a socket and with one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from starlette.testclient import TestClient

from bild import BigLittleDecoder, Policy
from bild.engine import Limits
from bild.serving import Service, Settings, build_app
from bild.serving.server import Server, listen
from bild.serving.settings import Languages
from tests.networks import build, perturbed, word_tokenizer

LANGUAGES = (Languages("de", "en"),)


def decoder(kind: str = "t5") -> BigLittleDecoder:
    large = build(kind, seed=5, dtype=torch.float32)
    policy = Policy.bild(fallback_threshold=0.3, rollback_threshold=1.0)
    pair = BigLittleDecoder(large, perturbed(large, 0.2), word_tokenizer(), policy=policy)
    pair.generation_config.max_new_tokens = 16
    return pair


@pytest.fixture(scope="session")
def pair() -> BigLittleDecoder:
    return decoder()


def started(pair: BigLittleDecoder, limits: Limits | None = None, **settings) -> Service:
    service = Service(pair, pair.engine(limits), Settings(**{"languages": LANGUAGES} | settings))
    service.engine.start()
    return service


@pytest.fixture(scope="session")
def service(pair) -> Iterator[Service]:
    own = started(pair, Limits(rows=4))
    yield own
    own.engine.stop()


@pytest.fixture
def client(service) -> TestClient:
    return TestClient(build_app(service))


class Running:
    """A server in a thread."""

    def __init__(self, service: Service, drain_s: float = 10) -> None:
        self.service, self.server = service, Server(service, drain_s)
        self.socket = listen("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.leave()
        self.thread.join(130)
        assert not self.thread.is_alive()


@pytest.fixture
def run(pair) -> Iterator[Callable[..., Running]]:
    """Starts servers, which are stopped at the end."""
    running: list[Running] = []

    def start(limits: Limits | None = None, drain_s: float = 10, **settings) -> Running:
        running.append(Running(started(pair, limits, **settings), drain_s))
        return running[-1]

    yield start
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def server(pair) -> Iterator[Running]:
    own = Running(started(pair, Limits(rows=4)))
    yield own
    own.stop()


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def is_idle(service: Service) -> bool:
    load = service.engine.load
    return (load.rows, load.waiting, load.requests, load.cells) == (0, 0, 0, 0)
