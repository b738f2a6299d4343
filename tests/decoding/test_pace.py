"""Draft lengths that follow the load: the best one is found and kept, and no text of exact match changes."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from bild.decoding import Commit
from bild.decoding.goodput import Goodput
from bild.decoding.pace import Fixed, Table, parse_pace


class World:
    """Rounds with known costs: what a round of drafts brings and how long it takes.

    Args:
        keep: how often a drafted token stays.
        on: how often the drafter goes on.
        costs: ms of a round, a drafting pass, the same a row, and a token read.
        noise: share by which times vary.
    """

    def __init__(self, keep: float, on: float, costs: tuple[float, ...], noise: float = 0.1) -> None:
        self.keep, self.on, self.costs, self.noise = keep, on, costs, noise
        self.rng = random.Random(5)

    def round(self, rows: int, window: int) -> tuple[list[Commit], float]:
        commits = []
        for row in range(rows):
            length = next((at for at in range(window) if self.rng.random() > self.on), window)
            accepted = next((at for at in range(length) if self.rng.random() > self.keep), length)
            reason = None if window == 0 else "window" if length == window else "unsure"
            tokens = (1,) * (accepted + 1)
            doubtful = None if length == window else 1
            commits.append(
                Commit(row, tokens, ("large",) * len(tokens), (1,) * length, accepted, reason, doubtful=doubtful)
            )
        drafted = max(len(c.draft) + (c.doubtful is not None) for c in commits)
        read = sum(len(c.draft) + 1 for c in commits)
        ms = sum(c * f for c, f in zip(self.costs, [1, drafted, drafted * rows, read], strict=True))
        return commits, ms * self.rng.uniform(1 - self.noise, 1 + self.noise) / 1e3

    def goodput(self, rows: int, window: int) -> float:
        """Tokens a second on the average of many rounds, by hand."""
        tokens = rows * sum((self.on * self.keep) ** at for at in range(window + 1))
        passes = sum(1 - (1 - self.on**at) ** rows for at in range(window))
        read = rows * sum(self.on**at for at in range(window + 1))
        return 1e3 * tokens / sum(c * f for c, f in zip(self.costs, [1, passes, passes * rows, read], strict=True))


# As serving.md reckons with T5-large: beyond some rows reading drafts costs more than it saves.
LARGE = (18.0, 1.4, 0.08, 0.54)


@pytest.mark.parametrize("rows", [1, 6, 30])
@pytest.mark.parametrize(("keep", "costs"), [(0.9, LARGE), (0.5, LARGE), (0.8, (0.5, 0.4, 0.0, 0.05))])
def test_the_best_window_is_found(rows, keep, costs):
    world, pace = World(keep, 0.9, costs), Goodput()
    for _ in range(300):
        window = pace.window(rows)
        pace.learn(rows, window, *world.round(rows, 10 if window is None else window))
    rates = [world.goodput(rows, window) for window in range(11)]
    chosen = pace._near(rows)
    assert rates[chosen] > 0.93 * max(rates), (chosen, rates)
    assert rates[chosen] > 0.93 * max(rates[0], rates[10])


def test_it_does_not_flap_where_two_windows_are_as_good_and_follows_the_number_of_rows():
    world, pace = World(0.75, 0.9, LARGE), Goodput()
    chosen = []
    for turn in range(1200):
        rows = 2 if turn % 400 < 200 else 24
        window = pace.window(rows)
        pace.learn(rows, window, *world.round(rows, 10 if window is None else window))
        chosen.append((rows, pace._near(rows)))
    changes = sum(one != other for one, other in pairwise(chosen) if one[0] == other[0])
    late = {rows: {window for r, window in chosen[600:] if r == rows} for rows in (2, 24)}
    assert changes <= 10 and max(late[24]) < min(late[2])


def test_nothing_is_chosen_before_anything_is_known():
    pace = Goodput()
    assert pace.window(1) is None and pace.expected(1, 3) == 0
    assert Fixed().window(99) is None


def test_a_table_says_what_it_says():
    pace = parse_pace("table:2=5,8=0")
    assert [pace.window(rows) for rows in (1, 2, 7, 8, 50)] == [None, 5, 5, 0, 0]
    assert isinstance(parse_pace("fixed"), Fixed) and isinstance(parse_pace("goodput"), Goodput)
    for text in ("slow", "table", "table:", "table:1", "table:a=1", "goodput:1", "table:1=2=3"):
        with pytest.raises(ValueError, match="allowed are fixed, goodput, and table"):
            parse_pace(text)
    for wrong in ({}, {0: 1}, {1: -1}):
        with pytest.raises(ValueError, match="allowed are rows from 1"):
            Table(wrong)
