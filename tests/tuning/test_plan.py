"""The planner: its formula by simulation and by hand, its choice by trying everything, and its two measurements."""

from __future__ import annotations

import random
from itertools import product

import pytest

from bild import BigLittleDecoder, InputError
from bild.tuning.plan import Cost, Plan, agreement, best_plans, expected_tokens, measure, models_of, pass_costs
from tests.networks import build, forward, perturbed

NAMES = ("small", "middle", "large")


@pytest.mark.parametrize(("kept", "window"), [(0.0, 3), (1.0, 3), (0.7, 1), (0.6, 5), (0.9, 0)])
def test_tokens_of_a_round_as_they_fall(kept, window):
    rng, total = random.Random(0), 0
    for _ in range(20_000):
        stands = 0
        while stands < window and rng.random() < kept:
            stands += 1
        total += stands + 1
    assert expected_tokens(kept, window) == pytest.approx(total / 20_000, rel=0.02)
    if kept < 1:
        assert expected_tokens(kept, window) == pytest.approx((1 - kept ** (window + 1)) / (1 - kept))


def seconds(costs, kept, levels, windows) -> float:
    """What a chain costs a token, the largest level first; from the definition."""
    at = costs[levels[-1]].reading(0)
    for judge, drafter, window in zip(levels[-2::-1], levels[:0:-1], windows[::-1], strict=True):
        at = (window * at + costs[judge].reading(window)) / expected_tokens(kept[judge, drafter], window)
    return at


def test_the_best_plans_are_those_of_trying_everything():
    rng, windows = random.Random(3), range(1, 6)
    for _ in range(30):
        costs = {name: Cost(rng.random() * (at + 1) ** 2, rng.random() * 0.1) for at, name in enumerate(NAMES)}
        kept = {(a, b): rng.random() for a in NAMES for b in NAMES if a != b}
        found = best_plans(NAMES, costs, kept, windows)
        for count, chains in (
            (1, [("large",)]), (2, [("large", "small"), ("large", "middle")]), (3, [("large", "middle", "small")])
        ):  # fmt: skip
            every = [
                Plan(chain, own, seconds(costs, kept, chain, own))
                for chain in chains
                for own in product(windows, repeat=count - 1)
            ]
            assert found[count] == min(every, key=lambda plan: plan.seconds)


def test_a_plan_reads_from_the_small_model_up():
    assert str(Plan(("large", "middle", "small"), (8, 3), 1.0)) == "small (3) → middle (8) → large"
    assert str(Plan(("large",), (), 1.0)) == "large"


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_agreement_is_that_of_passes_without_a_cache(name):
    large = build(name)
    middle, small = perturbed(large, 0.2), build(name, seed=1, layers=1)
    decoder = BigLittleDecoder(large, small, middle=middle)
    jobs = decoder.jobs([[5, 6, 7, 5], [9, 4]], max_new_tokens=9)
    networks = {"small": small, "middle": middle, "large": large}
    assert list(models_of(decoder)) == list(NAMES)
    for draws in (False, True):
        found, sums, places = agreement(decoder, jobs, draws=draws), dict.fromkeys(product(NAMES, NAMES), 0.0), 0
        for job, result in zip(jobs, decoder.generate([[5, 6, 7, 5], [9, 4]], "large", max_new_tokens=9), strict=True):
            tokens = [*job.request.prompt, *result.token_ids[:-1]]
            count = len(result.token_ids)
            logits = {each: forward(network, job.source, tokens)[-count:] for each, network in networks.items()}
            places += count
            for a, b in sums:
                p, q = logits[a].softmax(-1), logits[b].softmax(-1)
                same = 1 - (p - q).abs().sum(-1) / 2 if draws else (p.argmax(-1) == q.argmax(-1)).double()
                sums[a, b] += float(same.sum())
        for pair, share in found.items():
            assert share == pytest.approx(sums[pair] / places, abs=1e-5)
        assert found["large", "middle"] > found["large", "small"]


def test_an_exit_and_a_chain_are_planned_and_run():
    large = build("llama")
    small = build("llama", seed=1, layers=1)
    decoder = BigLittleDecoder(large, small, middle="exit:1")
    jobs = decoder.jobs([[5, 6, 7, 5], [9, 4]], max_new_tokens=12)
    costs = pass_costs(decoder, jobs, timed=(1, 4))
    assert all(cost.fixed >= 0 and cost.token >= 0 and cost.reading(3) > 0 for cost in costs.values())
    for plan in best_plans(list(costs), costs, agreement(decoder, jobs), range(1, 4)).values():
        assert 0 < measure(decoder, plan, jobs) < 10
        assert 0 < measure(decoder, plan, jobs, draws=True) < 10
    one = decoder.jobs([[5, 6]], max_new_tokens=1)
    assert measure(decoder, plan, one) is None
    with pytest.raises(InputError, match="about two models or three, and this pair has one"):
        agreement(BigLittleDecoder(large, drafter="ngram"), jobs)
