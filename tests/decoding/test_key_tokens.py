"""Key tokens are judged strictly, others loosely; which is which by hand."""

from __future__ import annotations

import math

import pytest
import torch

from bild.decoding import Greedy, History, ModelDrafter, Policy, Reading, Request, Scores, decode
from bild.decoding.key_tokens import KeyTokens
from tests.toy import ToyModel, ToyScorer

SMALL, LARGE = ToyModel(1, blend=0.75), ToyModel(2, blend=0.75)


def text(policy: Policy, seed: int) -> list[int]:
    asked = Request(prompt=[seed % 7, seed // 7 % 7], max_new_tokens=12)
    commits = decode([asked], policy, large=ToyScorer(LARGE), drafter=ModelDrafter(ToyScorer(SMALL)))
    return [token for commit in commits for token in commit.tokens]


@pytest.mark.parametrize("seed", range(12))
def test_all_key_is_exact_and_none_key_is_the_loose_rule(seed):
    own = {"fallback_threshold": 0.3, "max_draft_tokens": 8}
    exact = text(Policy.large(), seed)
    for all_key in ({"surprise_gap": 0.0}, {"top_gap": 0.0}, {"variation": 0.0, "surprise_gap": math.inf}):
        assert text(Policy.key_tokens(rollback_threshold=math.inf, **all_key, **own), seed) == exact
    none = Policy.key_tokens(rollback_threshold=1.0, surprise_gap=math.inf, top_gap=math.inf, **own)
    assert text(none, seed) == text(Policy.bild(rollback_threshold=1.0, verify_end=True, **own), seed)


def test_which_tokens_are_key_by_hand():
    large = torch.tensor([[[0.6, 0.3, 0.1], [0.5, 0.45, 0.05], [0.5, 0.45, 0.05], [1 / 3, 1 / 3, 1 / 3]]]).log()
    small = torch.tensor([[[0.3, 0.6, 0.1], [0.5, 0.45, 0.05], [0.02, 0.96, 0.02], [0.0, 0.0, 0.0]]]).log()
    row = History(tokens=[0, 1, 1, 1], prompt_length=1)
    reading = Reading(Scores.of(large), torch.tensor([[1, 1, 1, 0]]), small, [row], [4], Greedy())

    def keeps(**options: float) -> list[bool]:
        return (
            KeyTokens(**{"surprise_gap": math.inf, "top_gap": math.inf} | options).judge(reading).keep[0, :3].tolist()
        )

    # The large model would write 0 everywhere, and 1 is within two nats of it.
    assert keeps() == [True, True, True]
    # Surprises differ by log 2 = 0.69, by nothing, and by log(0.96 / 0.45) = 0.76.
    assert keeps(surprise_gap=0.7) == [True, True, False] and keeps(surprise_gap=0.69) == [False, True, False]
    # The first choice is ahead by 0.3, 0.05 and 0.05.
    assert keeps(top_gap=0.2) == [False, True, True]
    # The distributions are 0.3, 0 and 0.51 apart.
    assert keeps(variation=0.4) == [True, True, False]
    assert keeps(threshold=0.7) == [False, False, False]


def test_it_is_written_down_and_read_and_refuses_what_cannot_be():
    policy = Policy.key_tokens(surprise_gap=0.5, variation=0.3)
    assert Policy.from_dict(policy.to_dict()) == policy and not policy.lossless
    assert Policy().parse("key_tokens:surprise_gap=0.5:variation=0.3") == policy
    for wrong in ({"surprise_gap": -1}, {"top_gap": math.nan}, {"metric": "js"}, {"rollback_threshold": -1}):
        with pytest.raises(ValueError, match=r"allowed|key tokens take"):
            Policy.key_tokens(**wrong)
