"""Adaptive thresholds, by value."""

from __future__ import annotations

import math

import pytest

from bild.decoding import AdaptiveConfidence, AdaptiveDistance, Policy, Request, Row
from bild.decoding.adaptive import Boundary
from tests.decoding.test_rounds import EOS, Script, run, text
from tests.toy import ToyModel


def test_the_boundary_is_half_way_between_the_means():
    boundary = Boundary(0.5, 2)
    assert boundary.middle == 0.5
    boundary.add(0.9, agreed=True)
    assert boundary.middle == pytest.approx(((1.0 + 0.9) / 3 + 0.5) / 2)
    boundary.add(0.1, agreed=False)
    boundary.add(0.2, agreed=False)
    assert boundary.middle == pytest.approx(((1.0 + 0.9) / 3 + (1.0 + 0.1 + 0.2) / 4) / 2)


def adapted(confidence: dict[int, float], wrong: dict[int, int]) -> tuple[Policy, list, Row]:
    """A text whose small model is right but for the places in ``wrong``."""
    right = [1, 2, 3, 4, 1, 2, 3, EOS]
    small = Script([wrong.get(at, token) for at, token in enumerate(right)], confidence)
    policy = Policy.adaptive(
        fallback_threshold=0.5,
        rollback_threshold=2.0,
        measure="max_probability",
        metric="nll",
        prior=1,
        verify_end=True,
    )
    request = Request(prompt=[0], max_new_tokens=20, eos_token_ids=[EOS])
    (row,) = run(small, Script(right), policy, [request])
    assert text(row) == right
    return policy, row, Row(0, request)


def test_a_doubt_that_was_right_makes_it_bolder():
    """The first token is right at 0.49 and handed over; from then on the boundary lies below 0.49."""
    _, row, _ = adapted({0: 0.49, 2: 0.495}, {})
    assert row[0].reason == "unsure" and row[0].doubtful == row[0].tokens[0]
    # ½ ((0.5 + 0.49) / 2 + 0.5) = 0.4975 is above 0.495: it hands over there once more.
    assert [commit.reason for commit in row] == ["unsure", "unsure", "end"]


def test_being_wrong_makes_it_more_careful():
    """Wrong at 0.8: the boundary rises to ½ (0.5 + (0.5 + 0.8) / 2) = 0.575 and a token of 0.55 is handed over."""
    _, row, _ = adapted({1: 0.8, 3: 0.55}, {1: 7})
    assert row[0].rolled_back and row[1].reason == "unsure" and row[1].confidences[-1] == pytest.approx(0.55)
    _, calm, _ = adapted({3: 0.55}, {})
    assert [commit.reason for commit in calm] == ["end"]


def test_the_rollback_threshold_follows_what_differed():
    rule = AdaptiveDistance(2.0, prior=1)
    row = Row(0, Request(prompt=[0], max_new_tokens=3))
    rule.take(row, [0.1, 4.0, math.inf], [True, False, False])
    # Forbidden tokens, infinitely far away, teach nothing.
    assert rule.boundary(row).middle == pytest.approx((2.1 / 2 + 6.0 / 2) / 2)
    # Two rules of one row learn apart.
    assert AdaptiveConfidence(0.4, prior=1).boundary(row).middle == 0.4


def test_rows_learn_for_themselves():
    small, large, policy = ToyModel(1, blend=0.8), ToyModel(2, blend=0.8), Policy.adaptive(prior=0.5)
    requests = [Request(prompt=[b, 1], max_new_tokens=30) for b in range(5)]
    together = [text(row) for row in run(small, large, policy, requests)]
    assert together == [text(run(small, large, policy, [request])[0]) for request in requests]
    still = Policy.bild(fallback_threshold=0.3, rollback_threshold=0.5, measure="entropy", metric="js")
    assert together != [text(row) for row in run(small, large, still, requests)]
