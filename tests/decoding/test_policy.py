"""Policies: ranges, presets, what is lossless, and the way to JSON and back."""

from __future__ import annotations

import json
import math

import pytest
import torch

from bild.decoding import ExactMatch, FixedWindow, Greedy, LowConfidence, Policy, WithinDistance

LOGITS = torch.tensor([[[2.0, 0.0, -1.0, 1.0], [0.5, 3.0, 0.0, 0.0]]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Policy.bild(fallback_threshold=-0.1), "fallback_threshold is -0.1; allowed is 0 to 1"),
        (lambda: Policy.bild(fallback_threshold=45), "fallback_threshold is 45; allowed is 0 to 1"),
        (lambda: Policy.bild(fallback_threshold=math.nan), "fallback_threshold is nan"),
        (lambda: Policy.bild(rollback_threshold=-1), "rollback_threshold is -1; allowed is 0 or more"),
        (lambda: Policy.bild(rollback_threshold=math.nan), "rollback_threshold is nan"),
        (lambda: Policy.bild(max_draft_tokens=0), "max_draft_tokens is 0; allowed is 1 or more"),
        (lambda: FixedWindow(0), "window is 0; allowed is 1 or more"),
        (lambda: WithinDistance(1.0, "cosine"), "metric is 'cosine'; allowed are nll"),
        (lambda: Policy(acceptance=ExactMatch()), "verify_end=True"),
        (lambda: Policy.bild(verify_end=1.5), "verify_end is 1.5; allowed are True, False, or a probability"),
        (lambda: Policy(hand_over=FixedWindow(2), verify_end=0.5), "needs a hand-over rule that measures confidence"),
        (lambda: Policy(acceptance=ExactMatch(), verify_end=0.9), "verify_end=True"),
        (lambda: Policy(alone="medium"), "alone is 'medium'"),
        (lambda: Policy.preset("bild2"), "policy is 'bild2'; allowed are bild, exact, large, small"),
        (lambda: Policy.preset("large", fallback_threshold=0.5), "does not take all of: fallback_threshold"),
        (lambda: Policy.from_dict({"windows": 3}), "not a policy"),
        (lambda: Policy.from_dict({"hand_over": {"rule": "whim"}}), "rule is 'whim'"),
    ],
)
def test_meaningless_values_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    "policy",
    [
        Policy.bild(fallback_threshold=0.37, rollback_threshold=1.25, max_draft_tokens=7, verify_end=True),
        Policy.bild(verify_end=0.65),
        Policy.exact(fallback_threshold=0.2, max_draft_tokens=3),
        Policy.large(),
        Policy.small(),
        Policy(hand_over=FixedWindow(4), acceptance=WithinDistance(math.inf)),
    ],
)
def test_survives_json(policy):
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_knows_whether_it_is_lossless():
    lossless = [
        Policy.exact(),
        Policy.large(),
        Policy(hand_over=FixedWindow(3), acceptance=ExactMatch(), verify_end=True),
    ]
    lossy = [Policy.bild(), Policy.bild(rollback_threshold=0, verify_end=True), Policy.small()]
    assert [p.lossless for p in lossless + lossy] == [True] * 3 + [False] * 3


def test_confidence_is_the_largest_probability_and_the_threshold_is_strict():
    rule = LowConfidence(0.5)
    p = LOGITS[:, 0].exp() / LOGITS[:, 0].exp().sum()
    assert rule.confidence(LOGITS[:, 0]).item() == pytest.approx(p.max().item())
    assert rule.unsure(0.4999) and not rule.unsure(0.5)
    assert FixedWindow(2).confidence(LOGITS[:, 0]) is None and not FixedWindow(2).unsure(0.0)


def test_distance_is_the_negative_log_likelihood_and_the_threshold_is_strict():
    drafted = torch.tensor([[3, 1]])
    p = LOGITS.exp() / LOGITS.exp().sum(-1, keepdim=True)
    d = [-math.log(p[0, 0, 3]), -math.log(p[0, 1, 1])]
    for threshold, keep in ((d[0] * 1.001, True), (d[0] * 0.999, False)):
        judged = WithinDistance(threshold).judge(LOGITS, drafted, Greedy(), [], [])
        assert judged.distance[0].tolist() == pytest.approx(d)
        assert judged.keep[0].tolist() == [keep, True]
        assert judged.replacement[0].tolist() == [0, 1]


def test_exact_match_keeps_what_large_chooses():
    judged = ExactMatch().judge(LOGITS, torch.tensor([[3, 1]]), Greedy(), [], [])
    assert judged.keep[0].tolist() == [False, True]
