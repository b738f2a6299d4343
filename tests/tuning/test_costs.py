"""The cost model finds the prices that made the times."""

from __future__ import annotations

from random import Random

import pytest

from bild import Stats
from bild.tuning import CostModel, Outcome


def counts(rng: Random) -> Outcome:
    if rng.random() < 0.3:
        return Outcome.alone(tuple(range(rng.randint(3, 20))))
    large = rng.randint(0, 6)
    return Outcome((), rng.randint(3, 20), large, rng.randint(2, 15), 0, large)


def test_prices_are_recovered_and_noise_is_averaged():
    rng = Random(0)
    prices = (0.002, 0.0015, 0.0009, 0.0030, 0.0001)
    texts = [counts(rng) for _ in range(400)]

    def seconds(of: Outcome) -> float:
        read = of.num_draft_tokens + of.num_large_steps if of.num_large_steps else 0
        row = (1, of.num_large_steps > 0, of.num_small_steps, of.num_large_steps, read)
        return sum(price * count for price, count in zip(prices, row, strict=True))

    exact = CostModel.fit(texts, [seconds(text) for text in texts])
    assert exact.seconds == pytest.approx(prices)
    assert exact.cost_ratio == pytest.approx(0.0009 / 0.0031)
    noisy = CostModel.fit(texts, [seconds(text) * rng.uniform(0.8, 1.2) for text in texts])
    assert noisy.predict(texts) == pytest.approx(sum(map(seconds, texts)), rel=0.02)


def test_no_price_is_negative():
    """A text that takes less the more it reads: reading is then free, not paid back."""
    texts = [Outcome((), n, 2, 3 * n, 0, 2) for n in range(1, 30)]
    model = CostModel.fit(texts, [0.1 - 0.001 * n for n in range(1, 30)])
    assert min(model.seconds) >= 0 and model.predict(texts) == pytest.approx(
        sum(0.1 - 0.001 * n for n in range(1, 30)), rel=0.2
    )


def test_counts_of_a_run_and_of_a_lookup_cost_the_same():
    outcome = Outcome((1, 2, 3), 4, 2, 3, 2, 2)
    stats = Stats(num_tokens=3, num_small_steps=4, num_large_steps=2, num_draft_tokens=3, num_rounds=2)
    model = CostModel((1.0, 2.0, 3.0, 4.0, 5.0))
    assert model.predict([outcome]) == model.predict([stats]) == 1 + 2 + 3 * 4 + 4 * 2 + 5 * (3 + 2)
    assert model.predict([Outcome((1,), 1, 0, 1, 1, 1)]) == 1 + 3
