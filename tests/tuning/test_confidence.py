"""What a loss may be on other texts: values of single texts, bounds, and how many texts settle a budget."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bild.data.quality import metrics
from bild.tuning.confidence import Bound, Level, losses_by_text

WORDS = [f"w{number}" for number in range(40)]
BLEU = next(metric for metric in metrics() if metric.name == "bleu")


def score(sums: np.ndarray) -> float:
    return BLEU.score(sums.tolist()) or 0.0


def texts(count: int, wrong: float, seed: int = 0) -> np.ndarray:
    """BLEU's statistics of texts of twelve words, this share of them wrong."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        reference = rng.choice(WORDS, 12)
        said = np.where(rng.random(12) < wrong, "x", reference)
        rows.append(BLEU.statistics(" ".join(said), [" ".join(reference)]))
    return np.array(rows, dtype=np.float64)


def average(sums: np.ndarray) -> float:
    """A mean of numbers."""
    return float(sums[0] / sums[1])


def bound(level: Level, values: np.ndarray, changed: float = 0.0) -> Bound:
    """Of texts that lose these points of a mean."""
    own = np.stack([-values, np.ones(len(values))], axis=1)
    return level.bound(average, own * [0, 1], own, changed)


def looping(count: int) -> np.ndarray:
    """A text that says one word for ever."""
    return np.array(BLEU.statistics(" ".join(["x"] * count), [" ".join(WORDS[:12])]), dtype=np.float64)


def test_the_losses_of_texts_average_to_the_corpus_loss_and_are_those_of_leaving_texts_out():
    large, own = texts(300, 0.2), texts(300, 0.25, seed=1)
    whole = score(large.sum(0)) - score(own.sum(0))
    values = losses_by_text(score, large, own)
    assert values.mean() == pytest.approx(whole) and whole > 3
    without = [score(large.sum(0) - large[i]) - score(own.sum(0) - own[i]) for i in range(300)]
    jackknife = 300 * whole - 299 * np.array(without)
    assert np.corrcoef(values, jackknife)[0, 1] > 0.999
    assert values.std() == pytest.approx(jackknife.std(), rel=0.02)


def test_of_a_mean_the_loss_of_a_text_is_its_own():
    mean = next(metric for metric in metrics() if metric.name == "rougeL")
    large, own = np.array([[0.9, 1], [0.5, 1], [0.4, 1]]), np.array([[0.8, 1], [0.5, 1], [0.6, 1]])
    values = losses_by_text(lambda sums: mean.score(sums.tolist()) or 0.0, large, own)
    assert values == pytest.approx([10, 0, -20])


@pytest.mark.parametrize("side", ["policy", "large"])
def test_one_text_that_loops_does_not_decide(side):
    """Looping of the policy would cost it the budget, looping of the large model would pay for everything else."""
    large = texts(300, 0.2)
    own = large.copy()
    own[:12] = texts(12, 0.25, seed=5)
    before = Level(0.9).bound(score, large, own, 0.0)
    (own if side == "policy" else large)[100] = looping(256)
    after = Level(0.9).bound(score, large, own, 0.0)
    assert abs(after.loss - before.loss) > 3
    # It takes the place of the text that lost most (or gained most), which now counts: as one text does.
    assert after.upper == pytest.approx(before.upper, abs=0.4)
    # Two of them are no accident.
    (own if side == "policy" else large)[101] = looping(256)
    assert abs(Level(0.9).bound(score, large, own, 0.0).upper - before.upper) > 1


def test_a_bound_widens_with_the_confidence_and_narrows_with_texts():
    values = np.random.default_rng(0).normal(1.0, 10.0, 400)
    uppers = [bound(Level(confidence), values).upper for confidence in (0.6, 0.8, 0.9, 0.99)]
    assert uppers == sorted(uppers) and uppers[0] > values.mean()
    # z of 0.9 is 1.2816; the other texts move as much as these.
    assert uppers[2] - values.mean() == pytest.approx(1.2816 * math.sqrt(2) * 10 / 20, rel=0.1)
    assert bound(Level(0.9), np.tile(values, 4)).upper < uppers[2]


def test_texts_that_show_no_change_do_not_prove_that_there_is_none():
    unchanged = bound(Level(0.9), np.zeros(100), 30.0)
    assert unchanged.loss == 0 and unchanged.upper == pytest.approx(30 * math.sqrt(math.log(10)) / 100)
    fewest = Level(0.9).fewest(0.3, 30.0)
    assert fewest is not None
    assert Level(0.9).unseen(fewest, 30.0) <= 0.3 < Level(0.9).unseen(fewest - 1, 30.0)
    assert Level(0.9).fewest(0.0, 30.0) is None and Level(0.9).fewest(0.3, 0.0) == 1


def test_as_many_texts_as_are_said_to_be_needed_settle_it():
    level, bound = Level(0.9), Bound(0.1, 1.0, 100, centre=0.1, spread=20.0)
    needed = level.needed(bound, 0.3, 30.0)
    assert needed is not None
    room = level.errors * 20 / math.sqrt(needed)
    assert 0.1 + room <= 0.3 < 0.1 + level.errors * 20 / math.sqrt(needed - 1)
    assert level.needed(Bound(0.4, 1.0, 100, centre=0.4, spread=20.0), 0.3, 30.0) is None


def test_a_single_text_bounds_nothing():
    assert bound(Level(0.9), np.array([1.0])).upper == math.inf


@pytest.mark.parametrize("spread", ["normal", "rare"])
def test_other_texts_lose_no_more_than_the_bound_as_often_as_promised(spread):
    rng, broken = np.random.default_rng(3), 0
    for _ in range(1000):
        here, there = (
            rng.normal(0, 20, 250) if spread == "normal" else rng.normal(2, 40, 250) * (rng.random(250) < 0.1)
            for _ in range(2)
        )
        broken += there.mean() > bound(Level(0.9), here, 30.0).upper
    assert 40 < broken < 130
