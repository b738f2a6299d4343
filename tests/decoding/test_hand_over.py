"""Measures of confidence against their formula, and where each rule hands over."""

from __future__ import annotations

import math

import pytest
import torch

from bild.decoding import AdaptiveConfidence, FixedWindow, LowConfidence, Request, Row, Scores
from bild.decoding.hand_over import MEASURES

LOGITS = torch.tensor([[2.0, 0.0, -1.0, 1.0], [0.5, 3.0, 0.0, -math.inf]], dtype=torch.float64)
ROW = Row(0, Request(prompt=[0], max_new_tokens=3))


def plain(measure: str, logits: list[float]) -> float:
    weights = [math.exp(value) for value in logits]
    p = sorted((weight / sum(weights) for weight in weights), reverse=True)
    return {
        "max_probability": p[0],
        "margin": p[0] - p[1],
        "entropy": math.exp(sum(value * math.log(value) for value in p if value > 0)),
    }[measure]


@pytest.mark.parametrize("measure", MEASURES)
def test_confidence_equals_its_formula_and_the_threshold_is_strict(measure):
    confidence = LowConfidence(0.5, measure).confidence(Scores.of(LOGITS)).tolist()
    assert confidence == pytest.approx([plain(measure, row) for row in LOGITS.tolist()], abs=1e-12)
    assert LowConfidence(0.5, measure).unsure(0.4999, ROW) and not LowConfidence(0.5, measure).unsure(0.5, ROW)


def test_two_equal_tokens_are_half_a_token_each_and_one_token_is_certain():
    torn = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    assert [MEASURES[name].of(torn).item() for name in MEASURES] == pytest.approx([0.5, 0.0, 0.5])
    assert [MEASURES[name].of(torch.zeros(1, 1)).item() for name in MEASURES] == pytest.approx([1.0, 1.0, 1.0])


def test_a_fixed_window_measures_nothing():
    assert FixedWindow(2).confidence(Scores.of(LOGITS)) is None and not FixedWindow(2).unsure(0.0, ROW)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LowConfidence(1.0, "whim"), "measure is 'whim'; allowed are max_probability, margin, entropy"),
        (lambda: LowConfidence(0.5, window=0), "window is 0; allowed is 1 or more"),
        (lambda: AdaptiveConfidence(3.0), "fallback_threshold is 3.0"),
        (lambda: AdaptiveConfidence(0.5, prior=0), "prior is 0; allowed is more than 0"),
    ],
)
def test_values_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
