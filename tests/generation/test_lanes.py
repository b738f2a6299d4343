"""Lanes: what each of several threads decodes is what one would, and none is lost, left behind or waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bild import BigLittleDecoder, BildError, InputError
from bild.decoding import Commit
from bild.engine import Job
from bild.generation.lanes import Take, side_by_side
from tests.networks import build


@pytest.fixture(scope="module")
def toys() -> BigLittleDecoder:
    return BigLittleDecoder(build("t5", seed=1), build("t5", seed=2), runtime="eager")


PROMPTS = [[5 + at % 7, 9, 3 + at % 4, 11][: 2 + at % 3] for at in range(23)]


def named(results) -> list[object]:
    return [(result.token_ids, result.writers, result.stats) for result in results]


@pytest.mark.parametrize("policy", ["bild:fallback_threshold=0.1:rollback_threshold=4", "exact", "large", "small"])
def test_lanes_write_what_one_writes_in_order(toys, policy):
    one = named(toys.generate(PROMPTS, policy, max_new_tokens=9))
    for lanes, batch_size in ((2, 1), (3, 4)):
        assert named(toys.generate(PROMPTS, policy, max_new_tokens=9, lanes=lanes, batch_size=batch_size)) == one


def test_draws_do_not_depend_on_the_lanes(toys):
    asked = {"do_sample": True, "seed": 7, "max_new_tokens": 9}
    one = named(toys.generate(PROMPTS, "speculative_sampling", **asked))
    assert named(toys.generate(PROMPTS, "speculative_sampling", lanes=3, **asked)) == one


def test_the_callers_iterator_is_used_by_the_callers_thread_and_as_far_as_needed(toys):
    users = set()

    def endless() -> Iterator[list[int]]:
        while True:
            users.add(threading.current_thread())
            yield [5, 9, 3]

    results = toys.generate_each(endless(), "large", max_new_tokens=4, lanes=2)
    assert len({tuple(next(results).token_ids) for _ in range(12)}) == 1
    results.close()
    assert users == {threading.current_thread()}
    assert not [each for each in threading.enumerate() if each.name.startswith("bild-lane")]


def test_an_error_of_the_input_comes_behind_every_result_before_it(toys):
    def some() -> Iterator[list[int]]:
        yield from PROMPTS[:5]
        raise InputError("the sixth is missing")

    results, seen = toys.generate_each(some(), "large", max_new_tokens=4, lanes=2), []
    with pytest.raises(InputError, match="the sixth is missing"):
        for result in results:
            seen.append(result)
    assert named(seen) == named(toys.generate(PROMPTS[:5], "large", max_new_tokens=4))


def test_what_one_lane_raises_ends_all():
    begun = threading.Barrier(3)

    def lane(take: Take) -> Iterator[list[Commit]]:
        first, _ = take(1)
        begun.wait(10)
        if first == 1:
            raise BildError("scores that are not numbers")
        while True:
            yield [Commit(first, (1,), ("large",))]

    jobs: list[Job] = []
    taken = iter(range(10))
    with pytest.raises(BildError, match="not numbers"):
        for _ in side_by_side(lane, lambda room: (next(taken), jobs), 3):
            pass
    assert not [each for each in threading.enumerate() if each.name.startswith("bild-lane")]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["in a lane", "in the input"])
def test_what_ends_a_program_ends_all_lanes(where, error):
    def lane(take: Take) -> Iterator[list[Commit]]:
        first, _ = take(1)
        if where == "in a lane" and first == 1:
            raise error
        while True:
            yield [Commit(first, (1,), ("large",))]

    taken = iter(range(10))
    jobs: list[Job] = []

    def take(room: int):
        number = next(taken)
        if where == "in the input" and number == 1:
            raise error
        return number, jobs

    with pytest.raises(error):
        for _ in side_by_side(lane, take, 2):
            pass
    assert not [each for each in threading.enumerate() if each.name.startswith("bild-lane")]


@pytest.mark.parametrize("lanes", [0, -1, "2", 1.5])
def test_a_number_of_lanes_that_is_none_is_refused(toys, lanes):
    with pytest.raises(InputError, match=r"lanes is .*; allowed is 1 or more"):
        toys.generate(PROMPTS, lanes=lanes)
