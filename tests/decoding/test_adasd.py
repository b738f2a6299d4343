"""AdaSD as written: sequences by hand, and the whole against a plain decoder."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import (
    Cascade,
    DistanceOfAccepted,
    Draft,
    EntropyOfRejected,
    ModelDrafter,
    Policy,
    Request,
    Row,
    Verdict,
    decode,
)
from tests.decoding import brute
from tests.decoding.drafters.makers import VOCAB, tokens
from tests.toy import ToyModel, ToyScorer


def told(rule, row: Row, distances: list[float], accepted: int, entropies: list[float] = ()) -> None:
    draft = Draft(tokens=[1] * len(distances), confidences=[math.exp(-h) for h in entropies])
    rule.learn(row, draft, Verdict(accepted, 0, tuple(distances), (0,) * (len(distances) + 1)))


def row() -> Row:
    return Row(0, Request(prompt=[0], max_new_tokens=9))


def test_stops_above_the_mean_entropy_of_what_was_rejected():
    rule, text = EntropyOfRejected(), row()
    assert not rule.unsure(math.exp(-9), text)
    told(rule, text, [0, 0, 0], 1, [0.1, 0.8, 2.0])
    told(rule, text, [0, 0], 2, [3.0, 3.0])
    # Rejected: 0.8 alone; what came behind it was never judged.
    assert rule.unsure(math.exp(-0.81), text) and not rule.unsure(math.exp(-0.79), text)
    told(rule, text, [0], 0, [1.6])
    assert rule.unsure(math.exp(-1.21), text) and not rule.unsure(math.exp(-1.19), text)
    assert rule.unsure(math.nan, text) and rule.keeps_doubtful
    # Drafts of a drafter that measures nothing say nothing.
    told(rule, text, [0], 0)
    assert rule.rejected(text).values == pytest.approx([0.8, 1.6])


def test_older_tokens_may_count_for_less():
    rule, text = EntropyOfRejected(decay=0.5), row()
    for entropy in (1.0, 2.0, 4.0):
        told(rule, text, [0], 0, [entropy])
    assert rule.rejected(text).mean == pytest.approx((0.25 * 1 + 0.5 * 2 + 4) / 1.75)


def test_the_papers_example_of_the_first_version():
    """Means of 0.15 accepted and 0.49 rejected make a threshold of 0.32."""
    rule, text = DistanceOfAccepted(version=1), row()
    for _ in range(4):
        told(rule, text, [0.10, 0.20, 0.49, 0.9], 2)
    rejected, accepted = rule.groups(text)
    assert (accepted.mean, rejected.mean) == (pytest.approx(0.15), pytest.approx(0.49))
    assert rule._near(torch.tensor([0.31, 0.33, 0.0]), rejected, accepted).tolist() == [True, False, True]


def test_the_second_version_by_its_densities():
    rule, text = DistanceOfAccepted(version=2), row()
    for _ in range(4):
        told(rule, text, [0.0, 0.10, 0.14, 0.70, 0.1], 3)
    rejected, accepted = rule.groups(text)

    def density(values: list[float], at: float) -> float:
        width = max(0.02, 1.06 * statistics.pstdev(values) * len(values) ** -0.2)
        kernels = [math.exp(-(((at - v) / width) ** 2) / 2) for value in values for v in (value, -value, 2 - value)]
        return sum(kernels) / (len(values) * width * math.sqrt(2 * math.pi))

    # Exact 0 is left out of the densities, not of the shares.
    points = [0.0, 0.12, 0.3, 0.4, 0.69, 1.0]
    for at in points:
        assert float(accepted.density(torch.tensor([at]))) == pytest.approx(density([0.10, 0.14] * 4, at), rel=1e-4)
    expected = [density([0.10, 0.14] * 4, at) * 12 >= density([0.70] * 4, at) * 4 for at in points[1:5]]
    assert rule._near(torch.tensor(points[1:5], dtype=torch.float64), rejected, accepted).tolist() == expected
    assert expected[0] and not expected[-1]


def plain(small: ToyModel, large: ToyModel, prompt: list[int], version: int, limit: int, window: int) -> list[int]:
    """Greedy AdaSD from its text, no cache and no tensors but the distributions."""
    text: list[int] = []
    rejected_entropies: list[float] = []
    groups: dict[bool, list[float]] = {True: [], False: []}

    def of(model: ToyModel, more: list[int]) -> list[float]:
        return model.logits(prompt + text + more).softmax(-1).tolist()

    def apart(p: list[float], q: list[float]) -> float:
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        bits = sum(a * math.log2(a / m) / 2 for one in (p, q) for a, m in zip(one, middle, strict=True) if a > 0)
        return math.sqrt(max(0.0, bits))

    def density(values: list[float], at: float) -> float:
        values = [v for v in values if 0 < v < 1]
        if not values:
            return 0.0
        width = max(0.02, 1.06 * statistics.pstdev(values) * len(values) ** -0.2)
        kernels = [math.exp(-(((at - v) / width) ** 2) / 2) for value in values for v in (value, -value, 2 - value)]
        return sum(kernels) / (len(values) * width)

    def keeps(token: int, p: list[float], d: float) -> bool:
        if min(len(values) for values in groups.values()) < 4:
            return p.index(max(p)) == token
        if version == 1:
            return d < (statistics.mean(groups[True]) + statistics.mean(groups[False])) / 2
        chances = [density(groups[kept], d) * len(groups[kept]) for kept in (True, False)]
        return chances[0] >= chances[1] and chances[0] > 0

    while len(text) < limit:
        draft: list[int] = []
        entropies: list[float] = []
        while len(draft) < window and len(text) + len(draft) < limit:
            q = of(small, draft)
            entropies.append(-sum(each * math.log(each) for each in q if each > 0))
            draft.append(q.index(max(q)))
            if rejected_entropies and entropies[-1] > statistics.mean(rejected_entropies):
                break
        distances = [apart(of(large, draft[:at]), of(small, draft[:at])) for at in range(len(draft))]
        kept = next(
            (at for at, t in enumerate(draft) if not keeps(t, of(large, draft[:at]), distances[at])), len(draft)
        )
        if kept < len(draft):
            rejected_entropies.append(entropies[kept])
            groups[False].append(distances[kept])
        groups[True] += distances[:kept]
        text += draft[:kept]
        if len(text) < limit:
            p = of(large, [])
            text.append(p.index(max(p)))
    return text


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2]))
def test_equals_a_plain_decoder(seed, version):
    rng = random.Random(seed)
    small, large = ToyModel(seed, 5, blend=0.8), ToyModel(seed + 1, 5, blend=0.8)
    prompt, limit, window = [rng.randrange(5)], rng.randint(1, 60), rng.randint(1, 6)
    policy = Policy.adasd(version=version, max_draft_tokens=window)
    drafter = ModelDrafter(ToyScorer(small))
    request = Request(prompt=prompt, max_new_tokens=limit)
    commits = list(decode([request], policy, large=ToyScorer(large), drafter=drafter))
    assert tokens(commits) == plain(small, large, prompt, version, limit, window)


@pytest.mark.parametrize("version", [1, 2])
def test_each_row_learns_for_itself_and_the_rule_lets_pass_what_the_exact_one_would_not(version):
    small, large = ToyModel(1, VOCAB, blend=0.8), ToyModel(2, VOCAB, blend=0.8)
    requests = [Request(prompt=[seed % VOCAB, seed % 3], max_new_tokens=60) for seed in range(6)]

    def texts(requests: list[Request], policy: Policy) -> list[list[int]]:
        rows: list[list] = [[] for _ in requests]
        drafter = ModelDrafter(ToyScorer(small, len(requests)))
        for commit in decode(requests, policy, large=ToyScorer(large, len(requests)), drafter=drafter):
            rows[commit.row].append(commit)
        return [tokens(row) for row in rows]

    policy = Policy.adasd(version=version)
    together = texts(requests, policy)
    assert together == [texts([request], policy)[0] for request in requests]
    assert together != texts(requests, Policy.exact())


def test_pyramid_is_two_distances_and_its_limits_are_known():
    """Thresholds without end: nothing is rolled back; none at all: the large model's text, and the middle's below."""
    small, middle, large = (ToyModel(seed, VOCAB) for seed in (1, 3, 2))
    request = Request(prompt=[1], max_new_tokens=40)

    def run(policy: Policy) -> list:
        drafter = Cascade(ToyScorer(middle), ModelDrafter(ToyScorer(small)), 3)
        return list(decode([request], policy, large=ToyScorer(large), drafter=drafter))

    loose = run(Policy.pyramid(qualifier_threshold=math.inf, target_threshold=math.inf))
    assert not any(commit.rolled_back for commit in loose)
    # Of nine drafted below, every fourth is the middle's own.
    assert loose[0].writers == (*("small",) * 3, "middle", *("small",) * 3, "middle", "small", "small", "large")
    strict = run(Policy.pyramid(qualifier_threshold=0, target_threshold=0))
    assert tokens(strict) == brute.greedy(large, [1], 40, set())
    assert any(commit.rolled_back for commit in strict)
    assisted = run(Policy.pyramid(qualifier="exact_match", target_threshold=math.inf, max_draft_tokens=100))
    assert tokens(assisted) == brute.greedy(middle, [1], 40, set())
