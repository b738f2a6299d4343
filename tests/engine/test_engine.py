"""The engine turn by turn: who gets a row, who leaves, and that every text is that of its row alone."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bild.decoding import Beams, Policy, Rules
from bild.engine import Engine, Failed, Finished, Limits, Written
from bild.errors import BusyError, InputError, ScoreError, StoppedError, TooLongError
from tests.engine.toys import POLICIES, Caller, Clock, Toys, engine, job, rules, text

LARGE_ALONE = Rules(Policy.large())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_every_text_is_that_of_its_row_alone(seed):
    rng = random.Random(seed)
    caller = engine(rows=rng.randint(1, 4))
    asked = {}
    for at in range(rng.randint(1, 9)):
        own, how = job(9 * seed + at), rules(9 * seed + at)
        (id,) = caller.ask(own, rules=how)
        asked[id] = text(own, how)
        for _ in range(rng.randint(0, 2)):
            caller.engine.step()
    while caller.engine.step():
        pass
    assert {id: caller.tokens(id) for id in asked} == asked
    assert all(isinstance(caller.last(id), Finished) for id in asked)
    assert caller.engine.load.rows == caller.engine.load.cells == caller.engine.load.waiting == 0


def test_first_in_first_out_and_never_more_rows_than_allowed():
    caller = engine(toys := Toys(), rows=2)
    ids = caller.ask(*[job(seed, longest=3 * (seed + 1)) for seed in range(5)], rules=Rules(Policy.large()))
    order = []
    while caller.engine.step():
        order += [id for id in ids if any(isinstance(e, Written) for e in caller.events[id]) and id not in order]
    assert order == ids and toys.widest == 2


def test_memory_is_reserved_for_the_longest_of_the_rows():
    caller = engine(rows=8, cells=40)
    first, long, short = caller.ask(
        job(1, longest=8, prompt=[1, 2]),
        job(2, longest=18, prompt=[1, 2]),
        job(3, longest=1, prompt=[1]),
        rules=Rules(Policy.large()),
    )
    caller.engine.step()
    # 2 × 20 cells are taken; the short one fits into none, and waits for its turn.
    assert caller.engine.load.cells == 40 and caller.engine.load.rows == 2
    for _ in range(7):
        caller.engine.step()
    assert isinstance(caller.last(first), Finished) and caller.last(long) is None
    caller.engine.step()
    assert isinstance(caller.last(short), Finished)
    with pytest.raises(InputError, match=r"needs room for 41 tokens .* and there is room for 40; shorten it"):
        caller.ask(job(4, longest=40, prompt=[1]))


def test_a_search_has_a_row_a_hypothesis():
    caller, searched = engine(rows=8, cells=40), Rules(Policy.large(), beams=Beams(width=3))
    caller.ask(job(1, longest=8, prompt=[1, 2]), job(2, longest=8, prompt=[1, 2]), rules=searched)
    caller.engine.step()
    assert (caller.engine.load.cells, caller.engine.load.rows, caller.engine.load.waiting) == (30, 1, 1)
    with pytest.raises(InputError, match=r"needs room for 42 tokens .* in each of 3 hypotheses.*; .* or num_beams"):
        caller.ask(job(4, longest=13, prompt=[1]), rules=searched)


def test_a_search_that_fails_is_begun_again_and_its_owner_hears_each_token_once():
    failing = [True]

    def trouble(read):
        if failing[0] and max(map(len, read)) >= 8:
            failing[0] = False
            raise RuntimeError("once")

    caller, searched = engine(Toys(large=trouble), rows=4), Rules(Policy.exact(), beams=Beams(width=2))
    own = job(3, longest=12, prompt=[1, 2])
    (id,) = caller.ask(own, rules=searched)
    while caller.engine.step():
        pass
    assert not failing[0] and caller.tokens(id) == text(own, searched)


def test_tokens_that_wait_are_counted_until_they_have_a_row():
    caller = engine(rows=1, queue_tokens=20)
    own = [job(seed, longest=2, prompt=[1] * 8) for seed in range(2)]
    place = caller.engine.reserve()
    caller.engine.claim(place, own, LARGE_ALONE)
    caller.engine.submit(own, Rules(Policy.large()), caller.hear, place)
    assert caller.engine.load.tokens == 16
    other = caller.engine.reserve()
    with pytest.raises(BusyError, match="16 tokens are waiting to be read, and at most 20 may"):
        caller.engine.claim(other, own, LARGE_ALONE)
    caller.engine.step()
    assert caller.engine.load.tokens == 8
    caller.engine.claim(other, own[:1], LARGE_ALONE)
    assert caller.engine.load.tokens == 16
    caller.engine.claim(other, [job(3, longest=1, prompt=[1] * 12)], LARGE_ALONE)
    with pytest.raises(BusyError, match="20 tokens are waiting"):
        caller.engine.reserve()
    caller.engine.release(other)
    while caller.engine.step():
        pass
    assert caller.engine.load.tokens == 0
    # One that has more than may wait is taken where nobody else does.
    caller.engine.claim(caller.engine.reserve(), [job(3, longest=1, prompt=[1] * 30)], LARGE_ALONE)


def test_a_text_that_does_not_fit_yet_is_not_overtaken():
    caller = engine(rows=8, cells=24)
    caller.ask(job(1, longest=9, prompt=[1]), rules=Rules(Policy.large()))
    caller.engine.step()
    big, small = caller.ask(job(2, longest=19, prompt=[1]), job(3, longest=1, prompt=[1]))
    caller.engine.step()
    assert caller.events[big] == caller.events[small] == []


def test_sources_read_in_one_turn_are_bounded():
    caller = engine(rows=8, source_tokens=10)
    caller.ask(*[replace(job(seed, longest=5), source=[2] * 6) for seed in range(3)], rules=Rules(Policy.large()))
    rows = []
    for _ in range(3):
        caller.engine.step()
        rows.append(caller.engine.load.rows)
    assert rows == [1, 2, 3]


def test_cancelling_takes_one_turn_and_leaves_the_others_alone():
    caller = engine(rows=2)
    jobs = [job(seed, longest=12) for seed in range(4)]
    ids = caller.ask(*jobs)
    caller.engine.step()
    caller.engine.cancel([ids[0], ids[3]])
    caller.engine.cancel([ids[0]])
    caller.engine.step()
    for id in (ids[0], ids[3]):
        assert caller.last(id).failure == "cancelled"
    while caller.engine.step():
        pass
    caller.engine.cancel(ids)
    assert not caller.engine.step()
    for at in (1, 2):
        assert caller.tokens(ids[at]) == text(jobs[at], Rules(POLICIES[0]))


def test_long_prompts_are_read_in_pieces_while_others_go_on():
    toys = Toys()
    passes = []
    toys.large = lambda read: passes.append([len(row) for row in read])
    caller = engine(toys, rows=4)
    long = job(1, longest=4, prompt=[1, 2, 3, 4] * 50)
    quick = caller.ask(job(2, longest=30))[0]
    caller.engine.step()
    (id,) = caller.ask(long)
    before = len(caller.tokens(quick))
    for _ in range(2):
        caller.engine.step()
    assert caller.events[id] == [] and len(caller.tokens(quick)) > before
    while caller.engine.step():
        pass
    assert caller.tokens(id) == text(long, Rules(POLICIES[0]))
    pieces = [lengths[0] for lengths in passes if len(lengths) == 1 and lengths[0] >= 64]
    assert pieces[:3] == [64, 128, 192]


def test_requests_queue_up_to_the_limit_and_are_told_when_to_come_back():
    caller = engine(rows=1, queue=2)
    places = [caller.engine.reserve() for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests are waiting, as many as may") as raised:
        caller.engine.reserve()
    assert 1 <= raised.value.retry_after_s <= 60
    caller.engine.submit([job(1, longest=9)], Rules(Policy.large()), caller.hear, places[0])
    caller.engine.step()
    # Who has a row waits no longer.
    places.append(caller.engine.reserve())
    for place in [*places, *places]:
        caller.engine.release(place)
    assert caller.engine.load.requests == 0


def test_draining_serves_whoever_has_a_place():
    caller = engine(rows=1)
    place = caller.engine.reserve()
    caller.engine.drain()
    with pytest.raises(StoppedError, match="is being shut down"):
        caller.engine.reserve()
    (id,) = caller.engine.submit([job(1)], Rules(), caller.hear, place)
    while caller.engine.step():
        pass
    assert isinstance(caller.last(id), Finished)


def test_times_are_those_of_the_clock():
    caller = engine(rows=1)
    clock = caller.engine._clock
    _, second = caller.ask(job(1, longest=1), job(2, longest=2), rules=Rules(Policy.large()))
    for now in (1.0, 2.5, 7.0):
        clock.now = now
        caller.engine.step()
    end = caller.last(second)
    assert (end.queue_s, end.ttft_s, end.total_s) == (2.5, 2.5, 7.0)
    assert not caller.engine.step()
    caller.ask(job(3, longest=5))
    caller.engine.step()
    clock.now = 36
    assert caller.engine.healthy() and not caller.engine.healthy(patience_s=20)


class Poison:
    """Makes a pass fail whenever a row's text begins so."""

    def __init__(self, start: list[int], error: type[Exception], times: int = 10**6) -> None:
        self.start, self.error, self.times = start, error, times

    def __call__(self, read: list[list[int]]) -> None:
        if self.times and any(row[: len(self.start)] == self.start for row in read):
            self.times -= 1
            raise self.error("of a text nobody may see")


@pytest.mark.parametrize("error", [RuntimeError, ScoreError, ValueError])
@pytest.mark.parametrize("side", ["large", "small"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_row_that_makes_passes_fail_takes_nobody_along(error, side, after):
    poison = Poison([5, 5, 5], error)
    toys = Toys(**{side: poison if after == 0 else lambda read: None})
    caller = engine(toys, rows=8)
    jobs = [job(seed, longest=12) for seed in range(4)] + [job(9, longest=12, prompt=[5, 5, 5])]
    *good, bad = caller.ask(*jobs, rules=Rules(POLICIES[0]))
    for _ in range(after):
        caller.engine.step()
    setattr(toys, side, poison)
    for batch in [caller.engine._workers[0].batches[False, False]._batch] if after else []:
        batch.large.scorer.trouble = toys._large
        batch.drafter.scorer.trouble = toys.small
    turns = 0
    while caller.engine.step():
        turns += 1
    assert caller.last(bad).failure == "row" and "nobody" not in (
        caller.last(bad).message if error is RuntimeError else ""
    )
    assert [caller.tokens(id) for id in good] == [text(each, Rules(POLICIES[0])) for each in jobs[:-1]]
    assert turns < 30
    # And the next request is served.
    (id,) = caller.ask(jobs[0])
    while caller.engine.step():
        pass
    assert isinstance(caller.last(id), Finished)


def test_a_pass_that_fails_once_changes_no_text():
    toys = Toys(large=Poison([], RuntimeError, times=1))
    caller = engine(toys, rows=8)
    asked = [(job(seed), rules(seed)) for seed in range(8)]
    ids = [caller.ask(own, rules=how)[0] for own, how in asked]
    while caller.engine.step():
        pass
    assert [caller.tokens(id) for id in ids] == [text(*each) for each in asked]


def test_many_bad_requests_do_not_bring_the_engine_down():
    caller = engine(Toys(large=Poison([5, 5, 5], RuntimeError)), rows=4)
    caller.ask(job(0))
    for seed in range(6):
        (bad,) = caller.ask(job(seed, longest=3, prompt=[5, 5, 5]))
        while caller.engine.step():
            pass
        assert caller.last(bad).failure == "row"
    (good,) = caller.ask(job(1))
    while caller.engine.step():
        pass
    assert isinstance(caller.last(good), Finished)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] not enough memory: you tried")])
def test_out_of_memory_halves_the_rows_and_loses_nothing(error):
    def trouble(read):
        if len(read) > 2:
            raise error

    toys = Toys(large=trouble)
    caller = engine(toys, rows=8)
    jobs = [job(seed, longest=10) for seed in range(8)]
    ids = caller.ask(*jobs)
    while caller.engine.step():
        pass
    assert caller.engine.rows == 2
    assert [caller.tokens(id) for id in ids] == [text(each, Rules(POLICIES[0])) for each in jobs]


def test_models_that_always_fail_end_every_ticket_and_the_engine():
    caller = engine(Toys(large=Poison([], RuntimeError)), rows=2)
    ids = caller.ask(*[job(seed) for seed in range(9)], rules=Rules(Policy.large()))
    thread = caller.engine.start()
    thread.join(20)
    assert not thread.is_alive() and not caller.engine.alive and not caller.engine.healthy()
    assert {caller.last(id).failure for id in ids} == {"row", "engine"}
    with pytest.raises(StoppedError):
        caller.engine.reserve()


def test_a_thread_that_is_killed_leaves_nobody_waiting():
    caller = engine(Toys(large=Poison([], SystemExit)), rows=2)
    ids = caller.ask(*[job(seed) for seed in range(5)])
    caller.engine.start().join(20)
    assert {caller.last(id).failure for id in ids} == {"engine"} and not caller.engine.healthy()


def test_a_sink_that_raises_is_cancelled_and_harms_nobody():
    caller = engine(rows=4)
    place = caller.engine.reserve()

    def gone(events):
        raise RuntimeError("loop is closed")

    caller.engine.submit([job(1, longest=50)], Rules(Policy.large()), gone, place)
    (id,) = caller.ask(job(2, longest=5), rules=Rules(Policy.large()))
    caller.engine.step()
    caller.engine.step()
    assert caller.engine.load.rows == 1
    while caller.engine.step():
        pass
    assert isinstance(caller.last(id), Finished)


def test_who_counts_and_raises_harms_nobody():
    caller = engine(rows=1)

    def broken(turn):
        raise ZeroDivisionError

    caller.engine.watch = broken
    (id,) = caller.ask(job(1))
    while caller.engine.step():
        pass
    assert isinstance(caller.last(id), Finished)


def test_in_a_thread_it_waits_for_work_and_stops():
    caller = Caller(Engine(Toys(), Limits(rows=2)))
    thread = caller.engine.start()
    done = threading.Event()
    place = caller.engine.reserve()

    def hear(events):
        caller.hear(events)
        if isinstance(events[-1], Finished):
            done.set()

    caller.engine.submit([job(1)], Rules(), hear, place)
    assert done.wait(20)
    caller.engine.release(place)
    caller.engine.stop()
    thread.join(20)
    assert not thread.is_alive() and not caller.engine.alive


def test_stopping_tells_whoever_is_not_done():
    caller = engine(rows=1)
    ids = caller.ask(job(1, longest=9), job(2, longest=9), rules=Rules(Policy.large()))
    caller.engine.step()
    caller.engine.stop()
    caller.engine.run()
    assert [caller.last(id).failure for id in ids] == ["stopped", "stopped"]


def test_limits_below_one_are_refused():
    with pytest.raises(InputError, match="rows is 0; allowed is 1 or more"):
        Limits(rows=0)


class Busy(RuleBasedStateMachine):
    """Whatever is asked, cancelled and broken in whatever order: everybody hears an end once, nothing is held on to."""

    def __init__(self) -> None:
        super().__init__()
        self.toys = Toys(large=self.trouble, small=self.trouble)
        self.caller = Caller(Engine(self.toys, Limits(rows=3, cells=1000, queue=50), clock=Clock()))
        self.asked, self.cancelled, self.fail = {}, set(), 0

    def trouble(self, read):
        if self.fail:
            self.fail -= 1
            raise RuntimeError

    @rule(seed=st.integers(0, 10**5), count=st.integers(1, 4))
    def ask(self, seed, count):
        jobs, how = [job(seed + at) for at in range(count)], rules(seed)
        if max(how.most_rows * (len(own.request.prompt) + own.request.max_new_tokens) for own in jobs) > 1000:
            with pytest.raises(TooLongError):
                self.caller.ask(*jobs, rules=how)
            return
        for id, own in zip(self.caller.ask(*jobs, rules=how), jobs, strict=True):
            self.asked[id] = (own, how)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data):
        id = data.draw(st.sampled_from(sorted(self.asked)))
        if self.caller.last(id) is None:
            self.cancelled.add(id)
        self.caller.engine.cancel([id])

    @rule(fail=st.sampled_from([0, 0, 0, 1]))
    def step(self, fail):
        self.fail = fail
        self.caller.engine.step()

    @invariant()
    def keeps_to_its_limits(self):
        load = self.caller.engine.load
        assert load.rows <= 3 and load.cells <= 1000

    def teardown(self):
        self.fail = 0
        for _ in range(500):
            if not self.caller.engine.step():
                break
        load = self.caller.engine.load
        assert (load.rows, load.waiting, load.cells) == (0, 0, 0)
        for id, each in self.asked.items():
            end = self.caller.last(id)
            assert end is not None
            if isinstance(end, Finished):
                assert self.caller.tokens(id) == text(*each)
            elif isinstance(end, Failed) and end.failure == "cancelled":
                assert id in self.cancelled


Busy.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBusy = Busy.TestCase
