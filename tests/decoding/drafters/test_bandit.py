"""Which drafter pays is learnt, and only from what the lossless rules allow."""

from __future__ import annotations

import pytest
import torch

from bild.decoding import (
    Bandit,
    Draft,
    Greedy,
    ModelDrafter,
    Policy,
    Request,
    Row,
    Rules,
    Sampling,
    Verdict,
    Work,
    decode,
)
from tests.decoding.test_sampling import chi_square_p, expected_texts, texts_of
from tests.toy import ToyModel, ToyScorer


class Arm:
    """Proposes one token ``room`` times."""

    def __init__(self, name: str):
        self.name, self.asked = name, 0

    def draft(self, rows, room):
        drafts = [Draft(tokens=[1] * free, reason="window", writer=self.name, certain=True) for free in room]
        for row, draft in zip(rows, drafts, strict=True):
            row.tokens += draft.tokens
        self.asked += sum(free > 0 for free in room)
        return drafts


def played(rule: str, chances: list[float], rounds: int, room: int = 4, seed: int = 0) -> list[int]:
    """How often each arm was played; arm i has each token accepted with a fixed chance."""
    numbers = torch.Generator().manual_seed(seed)
    bandit = Bandit([Arm(str(at)) for at in range(len(chances))], rule=rule)
    row = Row(0, Request(prompt=[3], max_new_tokens=10**6))
    for _ in range(rounds):
        (draft,) = bandit.draft([row], [room])
        rejected = torch.rand(room, generator=numbers) >= chances[int(draft.writer)]
        accepted = int(rejected.int().argmax()) if rejected.any() else room
        del row.tokens[row.committed :]
        bandit.learn(row, draft, Verdict(accepted, 0, (0.0,) * room, (0,) * (room + 1)))
    return [arm.asked for arm in bandit.drafters]


@pytest.mark.parametrize("rule", ["ucb", "exp3", "halving"])
def test_the_better_arm_is_played_more_often(rule):
    counts = played(rule, [0.2, 0.9, 0.3], 400)
    assert sum(counts) == 400 and counts[1] > (160 if rule == "exp3" else 280)


def test_regret_of_ucb_grows_far_slower_than_the_rounds():
    wrong = [sum(sum(played("ucb", [0.2, 0.9], rounds, seed=seed)[:1]) for seed in range(5)) for rounds in (100, 1600)]
    assert wrong[1] < 4 * wrong[0]


def test_halving_goes_by_rounds():
    # Two rounds each, the better half of four, two more each, then one is left.
    assert played("halving", [0.0, 0.0, 0.99, 0.7], 30) == [2, 2, 22, 4]


def test_rewards_count_positions_up_to_the_first_rejected_one():
    row = Row(0, Request(prompt=[3], max_new_tokens=50))

    def mean(reward: str, policy: Policy) -> float:
        bandit = Bandit([Arm("only")], reward=reward)
        row.rules, row.memory = Rules(policy), {}
        (draft,) = bandit.draft([row], [4])
        del row.tokens[row.committed :]
        bandit.learn(row, draft, Verdict(1, 0, (0.1, 0.7, 1.0, 1.0), (0,) * 5))
        return row.memory[bandit.key].mean(0)

    rejection, exact = Policy.speculative_sampling(window=4), Policy.exact()
    assert mean("accepted", rejection) == 0.25 and mean("overlap", exact) == 0.25
    assert mean("overlap", rejection) == pytest.approx((0.9 + 0.3) / 2)


def test_the_reward_of_speed_is_tokens_for_their_cost():
    row = Row(0, Request(prompt=[3], max_new_tokens=50))
    bandit = Bandit([Arm("only")], reward="speed", step_cost=0.5, read_cost=0.25)

    def earned(steps: int, accepted: int) -> float:
        row.memory = {}
        (draft,) = bandit.draft([row], [4])
        del row.tokens[row.committed :]
        draft.work = {"only": Work(steps, steps)} if steps else {}
        bandit.learn(row, draft, Verdict(accepted, 0, (0.0,) * 4, (0,) * 5))
        return row.memory[bandit.key].mean(0)

    # Four drafted tokens are read: 1 + 4/4 large steps; four steps of half a large one more with a model.
    assert earned(0, 3) == pytest.approx(4 / 2 / 5) and earned(4, 3) == pytest.approx(4 / 4 / 5)
    # What proposes nothing still earns what a step of the large model alone is worth.
    bandit.draft([row], [4])
    bandit.learn(row, Draft(reason="nothing"), Verdict(0, 0, (), (0,)))
    assert row.memory[bandit.key].sums[0] == pytest.approx(4 / 4 / 5 + 1 / 5)


def test_of_equally_good_arms_the_cheaper_one_is_played_for_speed():
    class Dear(Arm):
        def draft(self, rows, room):
            drafts = super().draft(rows, room)
            for draft in drafts:
                draft.work = {"1": Work(len(draft.tokens), len(draft.tokens))}
            return drafts

    counts = {}
    for reward in ("accepted", "speed"):
        bandit = Bandit([Dear("1"), Arm("0")], reward=reward)
        row = Row(0, Request(prompt=[3], max_new_tokens=10**6))
        for _ in range(300):
            (draft,) = bandit.draft([row], [4])
            del row.tokens[row.committed :]
            bandit.learn(row, draft, Verdict(3, 0, (0.0,) * 4, (0,) * 5))
        counts[reward] = [arm.asked for arm in bandit.drafters]
    assert counts["accepted"] == [150, 150] and counts["speed"][1] > 180


def test_the_overlap_is_what_rejection_sampling_measures():
    """One position: overlap 1 - TV(p, q), drawn; greedy: whether both would write the same."""
    large, small = ToyModel(5, 3), ToyModel(6, 3)
    p, q = (model.logits([0]).softmax(-1) for model in (large, small))
    apart = float((p - q).abs().sum() / 2)
    for choice, expected in ((Sampling(), apart), (Greedy(), float(p.argmax() != q.argmax()))):
        request = Request(prompt=[0], max_new_tokens=4, generator=torch.Generator().manual_seed(1))
        policy = Policy.speculative_sampling(window=1)
        drafter = ModelDrafter(ToyScorer(small))
        commit = next(decode([request], policy, large=ToyScorer(large), drafter=drafter, choice=choice))
        assert commit.distances == (pytest.approx(expected),)


@pytest.mark.parametrize(
    ("rule", "reward"), [("ucb", "accepted"), ("ucb", "overlap"), ("ucb", "speed"), ("exp3", "accepted")]
)
def test_two_arms_keep_rejection_sampling_lossless(rule, reward):
    large, draws, length = ToyModel(5, 3), 2500, 4
    policy = Policy.speculative_sampling(window=2)

    def arms() -> list[ModelDrafter]:
        return [ModelDrafter(ToyScorer(ToyModel(seed, 3), draws), name=str(seed)) for seed in (6, 7)]

    seen = texts_of(policy, Bandit(arms(), rule, reward), large, draws, length)
    assert chi_square_p(seen, expected_texts(large, lambda logits: logits, length, draws)) > 0.01
    # The test can fail: an arm's own distribution is another one.
    small = expected_texts(ToyModel(6, 3), lambda logits: logits, length, draws)
    assert chi_square_p(seen, small) < 1e-6


@pytest.mark.parametrize(
    "options", [{"rule": "best"}, {"reward": "fun"}, {"step_cost": -1.0}, {"read_cost": float("nan")}]
)
def test_unknown_rules_are_one_line(options):
    with pytest.raises(ValueError, match=r"allowed (are|is)"):
        Bandit([Arm("a")], **options)
