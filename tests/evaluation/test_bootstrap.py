"""The bootstrap against drawing by hand and against the analytic interval."""

from __future__ import annotations

import numpy as np
import pytest

from bild.evaluation import bootstrap as module
from bild.evaluation import evaluate
from bild.evaluation.bootstrap import Bootstrap, Estimate
from tests.evaluation.fakes import Clock, Fake, examples


def by_hand(rows: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Draw row numbers with replacement, add up the rows."""
    draws = np.random.default_rng(seed).integers(0, len(rows), (resamples, len(rows)))
    return np.array([[rows[number] for number in resample] for resample in draws]).sum(1)


@pytest.mark.parametrize("at_once", [4_000_000, 100, 1])
def test_sums_are_those_drawn_by_hand_however_many_at_once(monkeypatch, at_once):
    rows = np.random.default_rng(1).normal(size=(23, 3))
    monkeypatch.setattr(module, "DRAWS_AT_ONCE", at_once)
    assert Bootstrap(23, 40, seed=7).sums(rows) == pytest.approx(by_hand(rows, 40, 7))
    assert not np.allclose(Bootstrap(23, 40, seed=8).sums(rows), by_hand(rows, 40, 7))


def test_the_interval_of_a_mean_is_the_analytic_one():
    values = np.random.default_rng(2).normal(5, 3, 400)
    means = Bootstrap(400, 4000).sums(values[:, None])[:, 0] / 400
    estimate = Estimate.of(values.mean(), means.tolist())
    half = 1.96 * values.std() / np.sqrt(400)
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)


def test_the_interval_is_the_middle_95_percent_and_none_of_nothing():
    estimate = Estimate.of(1.0, [float(n) for n in range(1001)])
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.0, 25.0, 975.0))
    assert Estimate.of(None, [None, None]) == Estimate(None, None, None)


def test_a_method_differs_from_its_twin_by_exactly_nothing():
    clock = Clock(lambda call: 1 + 0.37 * (call % 2))
    write = lambda text: text.upper().replace("NUMBER 1", "NO. 7")  # noqa: E731
    methods = [Fake("large", clock, 1 / 3, write), Fake("twin", clock, 1 / 3, write, total_s=1 / 3)]
    twin = evaluate(methods, examples(11), clock=clock, resamples=100).sets["texts"].methods["twin"]
    assert {metric: (e.value, e.low, e.high) for metric, e in twin.difference.items()} == dict.fromkeys(
        ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"), (0.0, 0.0, 0.0)
    )
    assert twin.quality["bleu"].low < twin.quality["bleu"].value < twin.quality["bleu"].high


def test_intervals_are_paired():
    """A twin a little faster on every text: its speedup is sure, although the texts differ a hundredfold."""
    clock = Clock()
    hard = [1.0, 100.0, 3.0, 40.0, 9.0, 75.0] * 4
    cost = lambda factor: lambda call: hard[call // 2] * factor(call)  # noqa: E731
    clock.drift = cost(lambda call: 1.0)
    methods = [Fake("large", clock, 1.0), Fake("b", clock, 0.8)]
    figures = evaluate(methods, examples(24), clock=clock, warm_up=0, resamples=300).sets["texts"].methods["b"]
    assert (figures.speedup.low, figures.speedup.high) == pytest.approx((1.25, 1.25))
    assert figures.latency_p95_ms > 20 * figures.latency_median_ms / 10


def test_the_seed_and_the_number_of_resamples_count():
    def interval(**options):
        clock = Clock()
        methods = [Fake("large", clock, write=lambda text: text.upper() if "1" in text else "x")]
        summary = evaluate(methods, examples(30), clock=clock, **options)
        return summary.sets["texts"].methods["large"].quality["chrf"]

    assert interval(seed=1, resamples=50) == interval(seed=1, resamples=50)
    assert interval(seed=1, resamples=50) != interval(seed=2, resamples=50) != interval(seed=2, resamples=60)
