"""Every acceptance rule against a plain computation with Python floats, and what a tighter threshold does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import (
    ExactMatch,
    Greedy,
    Judgement,
    Reading,
    RejectionSampling,
    Request,
    Row,
    Sampling,
    Scores,
    Summary,
    TypicalAcceptance,
    Use,
    WithinDistance,
)
from bild.decoding.distances import METRICS

V, T = 6, 4
"""Vocabulary, and positions of a reading: three draft tokens and the bonus."""


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def relative_entropy(p: list[float], q: list[float]) -> float:
    return sum(a * (math.inf if b == 0 else math.log(a / b)) for a, b in zip(p, q, strict=True) if a > 0)


def plain_distance(metric: str, large: list[float], token: int, small: list[float]) -> float:
    p, q = softmax(large), softmax(small)
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return {
        "nll": lambda: math.inf if p[token] == 0 else -math.log(p[token]),
        "margin": lambda: max(p) - p[token],
        "rank": lambda: float(sum(other > p[token] for other in p)),
        "kl": lambda: relative_entropy(q, p),
        "js": lambda: math.sqrt((relative_entropy(p, middle) + relative_entropy(q, middle)) / 2 / math.log(2)),
        "tv": lambda: sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2,
    }[metric]()


def drawn(weights: list[float], uniform: float) -> int:
    """Where the running sum of the weights passes that share of their total."""
    sums = itertools.accumulate(weights)
    return next(token for token, total in enumerate(sums) if total > uniform * sum(weights))


def reading(seed: int, choice=None, forbidden: int | None = None, *, blend: float = 0.6) -> Reading:
    """A random reading of one row; the small model shares a part of the large one's logits."""
    generator = torch.Generator().manual_seed(seed)
    shared, one, other = 2.5 * torch.randn(3, 1, T, V, generator=generator, dtype=torch.float64)
    large, small = blend * shared + (1 - blend) * one, blend * shared + (1 - blend) * other
    if forbidden is not None:
        large[..., forbidden] = small[..., forbidden] = -math.inf
    row = Row(0, Request(prompt=[0], max_new_tokens=9, generator=torch.Generator().manual_seed(seed)))
    drafted = torch.cat([small[:, :-1].argmax(-1), torch.zeros(1, 1, dtype=torch.long)], -1)
    row.tokens += drafted[0, :-1].tolist()
    return Reading(Scores.of(large), drafted, small, [row], [T], choice or Greedy())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("forbidden", [None, 2])
def test_distances_equal_their_formula(metric, forbidden):
    for seed in range(20):
        given_ = reading(seed, forbidden=forbidden)
        found = METRICS[metric].of(given_.logits, given_.drafted, given_.draft_logits)[0].tolist()
        for t in range(T - 1):
            token = int(given_.drafted[0, t])
            expected = plain_distance(metric, given_.logits[0, t].tolist(), token, given_.draft_logits[0, t].tolist())
            assert found[t] == pytest.approx(expected, abs=1e-12)


def test_distances_of_equal_and_of_disjoint_distributions():
    equal = torch.tensor([[[1.0, 0.0, -1.0]]], dtype=torch.float64)
    one, other = torch.tensor([[[0.0, -math.inf]]]), torch.tensor([[[-math.inf, 0.0]]])
    zero = torch.zeros(1, 1, dtype=torch.long)
    for metric, far in (("kl", math.inf), ("js", 1.0), ("tv", 1.0)):
        assert METRICS[metric].of(equal, zero, equal).item() == pytest.approx(0.0, abs=1e-7)
        assert METRICS[metric].of(one, zero, other).item() == pytest.approx(far)


@pytest.mark.parametrize("metric", METRICS)
def test_within_distance_keeps_what_is_near_or_large_would_choose(metric):
    both = set()
    for seed in range(40):
        given_ = reading(seed)
        for threshold in (0.0, METRICS[metric].default, math.inf):
            judged = WithinDistance(threshold, metric).judge(given_)
            for t in range(T - 1):
                token, large = int(given_.drafted[0, t]), given_.logits[0, t].tolist()
                distance = plain_distance(metric, large, token, given_.draft_logits[0, t].tolist())
                if abs(distance - threshold) > 1e-9:
                    assert judged.keep[0, t].item() == (distance <= threshold or token == large.index(max(large)))
                both.add(judged.keep[0, t].item())
            assert judged.replacement.equal(given_.logits.argmax(-1))
    assert both == {True, False}


def test_typical_acceptance_equals_its_formula():
    rule, both = TypicalAcceptance(epsilon=0.25, delta=0.6), set()
    for seed in range(60):
        given_ = reading(seed, forbidden=1)
        judged = rule.judge(given_)
        for t in range(T - 1):
            p = softmax(given_.logits[0, t].tolist())
            entropy = -sum(value * math.log(value) for value in p if value > 0)
            token = int(given_.drafted[0, t])
            typical = p[token] >= min(0.25, 0.6 * math.exp(-entropy))
            # The likeliest token is at least exp(−H) likely, so the formula keeps it by itself.
            assert max(p) >= math.exp(-entropy) - 1e-12
            assert judged.keep[0, t].item() == typical
            both.add(typical)
    assert both == {True, False}


RULES = [WithinDistance(1.0), WithinDistance(0.3, "margin"), TypicalAcceptance(0.2, 0.5), ExactMatch()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("sampled", [False, True])
def test_a_model_that_says_its_likeliest_tokens_is_judged_alike(rule, sampled):
    verdicts = set()
    for seed in range(40):
        plain = reading(seed, Sampling() if sampled else None)
        probability, likeliest = plain.logits.softmax(-1).max(-1)
        summary = Summary(likeliest, probability, plain.logits.logsumexp(-1))
        expected, found = rule.judge(plain), rule.judge(plain._replace(scores=Scores(plain.logits, summary)))
        assert found.keep.tolist() == expected.keep.tolist()
        assert found.replacement.tolist() == expected.replacement.tolist()
        torch.testing.assert_close(found.distance, expected.distance)
        verdicts |= set(expected.keep[0, :-1].tolist())
    assert verdicts == {False, True}


@pytest.mark.parametrize("weight", [1.0, 0.7, 0.0])
def test_rejection_sampling_equals_its_formula(weight):
    def warp(logits):
        return logits / 0.8

    rule, both = RejectionSampling(weight), set()
    for seed in range(60):
        given_ = reading(seed, Sampling(warp))
        judged = rule.judge(given_)
        row = given_.rows[0]
        for t in range(T):
            p = softmax([value / 0.8 for value in given_.logits[0, t].tolist()])
            q = softmax([value / 0.8 for value in given_.draft_logits[0, t].tolist()]) if t < T - 1 else [0.0] * V
            position = len(row.tokens) - (T - 1 - t)
            residual = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
            assert judged.replacement[0, t].item() == drawn(residual, row.uniform(position, Use.REPLACE))
            if t < T - 1:
                token = int(given_.drafted[0, t])
                blend = weight * p[token] + (1 - weight) * q[token]
                kept = row.uniform(position, Use.ACCEPT) < blend / q[token]
                assert judged.keep[0, t].item() == kept
                both.add(kept)
    assert both == ({True, False} if weight else {True})


def test_greedy_rejection_sampling_is_exact_match_and_a_blend_matches_the_blend():
    differ = 0
    for seed in range(60):
        given_ = reading(seed)
        exact, lossless = ExactMatch().judge(given_), RejectionSampling().judge(given_)
        assert lossless.keep.equal(exact.keep) and lossless.replacement.equal(exact.replacement)
        blended = RejectionSampling(0.3).judge(given_)
        for t in range(T):
            p, q = softmax(given_.logits[0, t].tolist()), softmax(given_.draft_logits[0, t].tolist())
            blend = [0.3 * a + 0.7 * b for a, b in zip(p, q, strict=True)] if t < T - 1 else p
            assert blended.replacement[0, t].item() == blend.index(max(blend))
        assert blended.keep.equal(blended.replacement == given_.drafted)
        differ += not blended.keep[:, :-1].equal(exact.keep[:, :-1])
    assert differ


def test_exact_match_keeps_what_large_draws_itself():
    given_ = reading(3, Sampling())
    judged = ExactMatch().judge(given_)
    for t in range(T):
        p, number = softmax(given_.logits[0, t].tolist()), given_.rows[0].uniform(1 + t, Use.TOKEN)
        assert judged.replacement[0, t].item() == drawn(p, number)
    assert judged.keep.equal(judged.replacement == given_.drafted)


def kept(judged: Judgement) -> int:
    """Draft tokens that stay: the longest prefix that is kept."""
    return int(judged.keep[0, :-1].long().cumprod(0).sum())


TIGHTER = {
    **{metric: lambda value, metric=metric: WithinDistance(value, metric) for metric in METRICS},
    "epsilon": lambda value: TypicalAcceptance(epsilon=1 - min(value, 1), delta=1.0),
    "delta": lambda value: TypicalAcceptance(epsilon=1.0, delta=1 - min(value, 1)),
    "weight": lambda value: RejectionSampling(1 - min(value, 1)),
}
"""Rules of one number each, made so that a smaller number is tighter."""


@pytest.mark.parametrize("rule", TIGHTER)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), numbers=st.lists(st.floats(0, 4), min_size=2, max_size=2), sampled=st.booleans())
def test_a_tighter_threshold_never_keeps_more(rule, seed, numbers, sampled):
    # A greedy blend has no such order: what is likeliest under it need not change one way.
    choice = Sampling() if sampled or rule == "weight" else Greedy()
    tight, loose = (TIGHTER[rule](number).judge(reading(seed, choice)) for number in sorted(numbers))
    assert (loose.keep | ~tight.keep)[0, :-1].all() and kept(tight) <= kept(loose)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: WithinDistance(1.0, "cosine"), "metric is 'cosine'; allowed are nll, margin, rank, kl, js, tv"),
        (lambda: TypicalAcceptance(epsilon=1.5), "epsilon is 1.5; allowed is 0 to 1"),
        (lambda: TypicalAcceptance(delta=-0.1), "delta is -0.1; allowed is 0 to 1"),
        (lambda: RejectionSampling(1.01), "weight is 1.01; allowed is 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
