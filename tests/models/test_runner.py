"""Several tokens in one call, and several threads on one graph: the same as one after the other."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bild.decoding.rows import Halt
from bild.models import CompiledModel
from bild.models.compiled import ahead, runner
from bild.models.compiled.scorer import CompiledScorer
from bild.models.kernels import building
from tests.compiled import compile_anew, static_model

pytestmark = [
    pytest.mark.compiles,
    pytest.mark.skipif(not building.is_supported(), reason="rows are named where our attention reads them"),
]
SOURCES = [[5, 9, 3], [4, 11, 6, 3, 8, 5, 9], [7, 7, 3, 12, 10]]
ROOMS = (9, 4, 7)
MINUTE_S = 60


@pytest.fixture(scope="module")
def model():
    return static_model("t5")


def begun(model) -> CompiledScorer:
    """Rows that have read something each, but for one token."""
    scorer = model.scorer(SOURCES)
    scorer.extend([[0, 4], [0], [0, 9, 6]])
    return scorer


class Rows:
    """Takes tokens until one is improbable, ends the text, or fills the room."""

    def __init__(self, below: float, ends: frozenset[int]) -> None:
        self.below, self.ends = below, ends
        self.seen: list[list[tuple[int, float]]] = [[] for _ in SOURCES]

    def take(self, row: int, token: int, probability: float) -> bool:
        self.seen[row].append((token, probability))
        return probability >= self.below and token not in self.ends and len(self.seen[row]) < ROOMS[row]

    def halts(self) -> list[Halt]:
        return [Halt(self.below, self.ends, room) for room in ROOMS]


def rolled(model, rows: Rows, halts, given=([5], [6], [7])):
    scorer = begun(model)
    passes = scorer.roll([list(new) for new in given], max(ROOMS), rows.take, halts)
    return rows.seen, passes, scorer.lengths


def ends_of(model) -> frozenset[int]:
    """A token that some row writes in the middle of its text."""
    rows = Rows(-1, frozenset())
    rolled(model, rows, [None] * 3)
    return frozenset({rows.seen[0][5][0], rows.seen[2][3][0]})


@pytest.mark.parametrize("below", [-1.0, 0.03, 2.0])
def test_rows_halt_where_they_are_told_to(model, below):
    assert model.graphs.rolls
    ends = ends_of(model)
    by_one = rolled(model, Rows(below, ends), [None] * 3)
    assert rolled(model, Rows(below, ends), Rows(below, ends).halts()) == by_one
    counts = by_one[1]
    assert counts == [1, 1, 1] if below == 2 else len(set(counts)) > 1


def test_a_row_that_gets_nothing_stays_as_it_is(model):
    rows = Rows(-1, frozenset())
    seen, passes, lengths = rolled(model, rows, rows.halts(), ([5], [], [7]))
    alone = Rows(-1, frozenset())
    assert (seen, passes, lengths) == rolled(model, alone, [None] * 3, ([5], [], [7]))
    assert seen[1] == [] and passes[1] == 0 and lengths[1] == 1


def test_who_takes_the_tokens_has_the_last_word(model):
    by_one = rolled(model, Rows(0.03, frozenset()), [None] * 3)
    sooner = [Halt(0.5, frozenset(), 2) for _ in ROOMS]
    assert rolled(model, Rows(0.03, frozenset()), sooner) == by_one
    later = [Halt(-1, frozenset(), 9) for _ in ROOMS]
    seen, passes, lengths = rolled(model, Rows(0.03, frozenset()), later)
    assert (seen, lengths) == (by_one[0], by_one[2]) and passes == [9, 9, 9]


def test_scores_that_are_not_numbers_halt_a_row(model):
    scorer, seen = begun(model), []
    with torch.inference_mode():
        for tensor in scorer.sources.tensors([0, 1, 2], 3)[:-1]:
            tensor[1] = math.nan

    def take(row: int, token: int, probability: float) -> bool:
        seen.append((row, probability))
        return False

    assert scorer.roll([[], [6], []], 9, take, Rows(-1, frozenset()).halts()) == [0, 1, 0]
    assert [row for row, _ in seen] == [1] and math.isnan(seen[0][1])


def test_threads_share_a_graph(model):
    expected = rolled(model, Rows(-1, frozenset()), Rows(-1, frozenset()).halts())

    def run(_: int):
        torch.set_num_threads(1)
        return [rolled(model, Rows(-1, frozenset()), Rows(-1, frozenset()).halts()) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        assert [each for found in pool.map(run, range(4)) for each in found] == [expected] * 20


def test_without_the_runner_torch_runs_the_graph(model, monkeypatch):
    monkeypatch.setattr(runner, "is_loaded", lambda: False)
    other: CompiledModel = compile_anew("t5")
    assert not other.graphs.rolls
    rows = Rows(0.03, frozenset())
    assert rolled(other, rows, rows.halts()) == rolled(model, Rows(0.03, frozenset()), [None] * 3)


def test_threads_that_run_a_graph_are_counted_and_their_cores_are_not_idle(model, monkeypatch):
    monkeypatch.setattr(ahead, "_cores", lambda: 1 + torch.get_num_threads())
    assert runner.running() == 0 and ahead.has_idle_cores()
    seen, ended = set[tuple[int, bool]](), threading.Event()

    def decode():
        while not ended.is_set():
            begun(model)

    with ThreadPoolExecutor() as pool:
        decoding, end = pool.submit(decode), time.monotonic() + MINUTE_S
        while (1, False) not in seen and time.monotonic() < end and not decoding.done():
            before = runner.running()
            idle = ahead.has_idle_cores()
            if runner.running() == before:
                seen.add((before, idle))
        ended.set()
        decoding.result()
    assert (1, False) in seen
    assert runner.running() == 0
