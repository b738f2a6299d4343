"""A pace shortens drafts in the engine: exact texts stay what they are, and at 0 the small model rests."""

from __future__ import annotations

import random

import pytest

from bild.decoding import Batch, Goodput, Policy, Rules, Table
from bild.decoding.at_once import MANY
from bild.engine import Engine, Limits, Written
from tests.engine.toys import Caller, Clock, Toys, job, text


class Drawn:
    """Windows drawn at random; keeps what it is told."""

    learns = True

    def __init__(self, windows: list[int | None]) -> None:
        self.windows, self.rng, self.told = windows, random.Random(3), []

    def window(self, rows):
        return self.rng.choice(self.windows)

    def learn(self, rows, window, commits, seconds):
        self.told.append((rows, window, seconds))
        assert all(len(commit.draft) <= (10 if window is None else window) for commit in commits)


def test_exact_texts_are_the_same_at_any_window():
    pace = Drawn([None, 0, 1, 2, 5])
    caller = Caller(Engine(Toys(), Limits(rows=3), pace=pace, clock=Clock()))
    rules = Rules(Policy.exact(fallback_threshold=0.1))
    jobs = [job(seed, longest=14) for seed in range(6)]
    ids = caller.ask(*jobs, rules=rules)
    while caller.engine.step():
        pass
    assert [caller.tokens(id) for id in ids] == [text(each, rules) for each in jobs]
    windows = {event.window for id in ids for event in caller.events[id] if isinstance(event, Written)}
    assert windows == {None, 0, 1, 2, 5} and {window for _, window, _ in pace.told} >= {0, 1, 2, 5}
    # Rounds in which somebody begins are not told: reading a source has nothing to do with drafts.
    assert len(pace.told) < sum(isinstance(e, Written) for id in ids for e in caller.events[id])


def test_at_window_0_the_small_model_is_not_touched_and_catches_up_later():
    passes = []
    toys = Toys(small=lambda read: passes.append(len(read[0])))
    pace = Drawn([0])
    caller = Caller(Engine(toys, Limits(rows=1), pace=pace, clock=Clock()))
    rules = Rules(Policy.exact(fallback_threshold=0.0))
    own = job(2, longest=14)
    (id,) = caller.ask(own, rules=rules)
    for _ in range(5):
        caller.engine.step()
    assert passes == [] and len(caller.tokens(id)) == 5
    pace.windows = [3]
    caller.engine.step()
    assert passes[0] == len(own.request.prompt) + 5
    while caller.engine.step():
        pass
    assert caller.tokens(id) == text(own, rules)


def test_goodput_in_the_engine_ends_where_drafts_cost_more_than_they_bring():
    clock = Clock()

    def small(read):
        clock.now += 1.0

    def large(read):
        clock.now += 1.0

    pace = Goodput(longest=4)
    caller = Caller(Engine(Toys(large, small), Limits(rows=1), pace=pace, clock=clock))
    rules = Rules(Policy.exact(fallback_threshold=0.0, max_draft_tokens=4))
    caller.ask(*[job(seed, longest=200) for seed in range(6)], rules=rules)
    while caller.engine.step():
        pass
    # A drafted token costs as much as one of the large model, and only some of them stay.
    assert pace._near(1) == 0 and pace.window(1) in (0, 1)


@pytest.mark.parametrize("pace, most", [(None, MANY), (Table({1: 2}), MANY), (Goodput(), 1)])
def test_several_rounds_in_one_call_where_nobody_waits_for_each_and_no_pace_learns_from_them(pace, most, monkeypatch):
    asked, played = [], Batch.round

    def round(batch, window=None, most=1):
        asked.append(most)
        return played(batch, window, most)

    monkeypatch.setattr(Batch, "round", round)
    caller = Caller(Engine(Toys(), Limits(rows=2), pace=pace, clock=Clock()))
    rules = Rules(Policy.exact(fallback_threshold=0.0))
    (waited_for,) = caller.ask(job(1, longest=4), rules=rules)
    (other,) = caller.ask(job(2, longest=14), rules=rules, live=False)
    alone = None
    while caller.engine.step():
        if alone is None and caller.last(waited_for) is not None:
            alone = len(asked)
    assert alone is not None and set(asked[:alone]) == {1} and set(asked[alone:]) == {most}
    assert caller.tokens(other) == text(job(2, longest=14), rules)
