"""Several threads of one engine: whose row a text has does not matter, and nobody is told twice or never."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from bild.decoding import Policy, Rules
from bild.engine import Engine, Event, Failed, Finished, Limits
from bild.errors import InputError, StoppedError
from tests.engine.toys import POLICIES, Caller, Toys, job, text

LANES = 3


def caller_of(toys: Toys | None = None, rows: int = 6) -> Caller:
    return Caller(Engine(Toys() if toys is None else toys, Limits(rows=rows, queue=200), lanes=LANES))


class Waiting(Caller):
    """Knows when all it asked for has ended."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.threads: set[str] = set()
        self.ended = threading.Condition()

    def hear(self, events: list[Event]) -> None:
        with self.ended:
            super().hear(events)
            self.threads.add(threading.current_thread().name)
            self.ended.notify_all()

    def wait(self, ids: Sequence[int]) -> None:
        with self.ended:
            assert self.ended.wait_for(lambda: all(self.last(id) is not None for id in ids), 60)


def slow(_: list[list[int]]) -> None:
    # Long enough for the others to get hold of Python.
    time.sleep(1e-4)


def test_every_text_is_that_of_its_row_alone_whoever_decodes_it():
    caller = Waiting(Engine(Toys(large=slow), Limits(rows=6, queue=200), lanes=LANES))
    thread = caller.engine.start()
    wanted: dict[int, list[int]] = {}
    for seed in range(60):
        each, rules = job(seed), Rules(POLICIES[seed % len(POLICIES)])
        (id,) = caller.ask(each, rules=rules)
        wanted[id] = text(each, rules)
    caller.wait(list(wanted))
    assert {id: caller.tokens(id) for id in wanted} == wanted
    assert caller.threads == {"bild-engine", "bild-engine-1", "bild-engine-2"}
    load = caller.engine.load
    assert (load.rows, load.waiting, load.requests, load.cells) == (0, 0, 0, 0) and caller.engine.healthy()
    caller.engine.stop()
    thread.join(20)
    assert not thread.is_alive() and not caller.engine.alive


def test_rows_are_shared_out_and_are_never_more_than_the_limit():
    caller = caller_of(rows=4)
    ids = caller.ask(*[job(seed, longest=9) for seed in range(9)], rules=Rules(Policy.large()))
    rows = []
    for lane in range(LANES):
        assert caller.engine.step(lane) == (lane < 2)
        rows.append(len(caller.engine._workers[lane].active))
    assert rows == [2, 2, 0] and caller.engine.load.waiting == 5
    while any([caller.engine.step(lane) for lane in range(LANES)]):
        assert caller.engine.load.rows <= 4
    assert all(isinstance(caller.last(id), Finished) for id in ids)


def test_who_is_cancelled_ends_in_the_lane_that_has_the_row():
    caller = caller_of(rows=2)
    first, second, third = caller.ask(*[job(seed, longest=50) for seed in range(3)], rules=Rules(Policy.large()))
    assert caller.engine.step(0) and caller.engine.step(1)
    caller.engine.cancel([second, third])
    caller.engine.step(0)
    assert caller.last(second) is None and isinstance(caller.last(third), Failed)
    caller.engine.step(1)
    assert isinstance(caller.last(second), Failed) and caller.last(first) is None


def test_a_lane_that_breaks_down_ends_all_of_them_once():
    def broken(read: list[list[int]]) -> None:
        if threading.current_thread().name == "bild-engine-1":
            raise SystemExit
        slow(read)

    caller = Waiting(Engine(Toys(large=broken), Limits(rows=6, queue=200), lanes=LANES))
    ids = caller.ask(*[job(seed, longest=200) for seed in range(40)], rules=Rules(Policy.large()))
    thread = caller.engine.start()
    caller.wait(ids)
    thread.join(20)
    failures = [end.failure for id in ids if isinstance(end := caller.last(id), Failed)]
    assert failures and set(failures) == {"engine"} and not caller.engine.healthy() and not thread.is_alive()
    with pytest.raises(StoppedError):
        caller.engine.reserve()


@pytest.mark.parametrize("lanes", [0, -1, 1.5])
def test_a_number_of_lanes_that_is_none_is_refused(lanes):
    with pytest.raises(InputError, match=r"lanes is .*; allowed is 1 or more"):
        Engine(Toys(), lanes=lanes)
