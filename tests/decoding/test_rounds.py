"""The loop against its definition, and every branch by value."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import PRESETS, Commit, Greedy, ModelDrafter, Policy, Request, decode
from tests.decoding import brute
from tests.toy import ToyModel, ToyScorer

PROMPT = [1, 2]


def run(small: ToyModel, large: ToyModel, policy: Policy, requests: list[Request], choice=None) -> list[list[Commit]]:
    """Each row's commits."""
    choice = choice or Greedy()
    if policy.alone is not None:
        scorer = ToyScorer(large if policy.alone == "large" else small, len(requests))
        commits = decode(requests, policy, large=scorer, choice=choice)
    else:
        drafter = ModelDrafter(ToyScorer(small, len(requests)))
        commits = decode(requests, policy, large=ToyScorer(large, len(requests)), drafter=drafter, choice=choice)
    rows: list[list[Commit]] = [[] for _ in requests]
    for commit in commits:
        rows[commit.row].append(commit)
    return rows


def text(row: list[Commit]) -> list[int]:
    return [token for commit in row for token in commit.tokens]


def writers(row: list[Commit]) -> list[str]:
    return [writer for commit in row for writer in commit.writers]


CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "vocab": st.sampled_from([1, 2, 3, 7, 12]),
        "blend": st.sampled_from([0.0, 0.5, 0.8, 1.0]),
        "fallback": st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.95, 1.01]),
        "rollback": st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0, math.inf]),
        "window": st.sampled_from([1, 2, 3, 10]),
        "limit": st.integers(1, 14),
        "verify_end": st.sampled_from([False, True, 0.4, 0.8]),
        "eos": st.sets(st.integers(0, 11), max_size=3),
    }
)


def models(case: dict) -> tuple[ToyModel, ToyModel]:
    small = ToyModel(2 * case["seed"], case["vocab"], blend=case["blend"])
    return small, ToyModel(2 * case["seed"] + 1, case["vocab"], blend=case["blend"])


def policy_of(case: dict) -> Policy:
    return Policy.bild(
        fallback_threshold=case["fallback"],
        rollback_threshold=case["rollback"],
        max_draft_tokens=case["window"],
        verify_end=case["verify_end"],
    )


def definition(case: dict, prompt: list[int]) -> brute.Brute:
    names = ("limit", "eos", "fallback", "rollback", "window", "verify_end")
    return brute.bild(*models(case), prompt, **{name: case[name] for name in names})


@settings(max_examples=1500, deadline=None)
@given(CASES)
def test_equals_the_definition(case):
    request = Request(prompt=PROMPT, max_new_tokens=case["limit"], eos_token_ids=case["eos"])
    (row,) = run(*models(case), policy_of(case), [request])
    expected = definition(case, PROMPT)
    assert text(row) == expected.tokens
    assert writers(row) == expected.writers
    assert [list(commit.draft) for commit in row] == expected.drafts
    assert [commit.accepted for commit in row] == expected.accepted
    assert [commit.reason for commit in row] == expected.reasons
    assert [commit.finish_reason for commit in row] == [None] * (len(row) - 1) + [expected.finish]


@settings(max_examples=300, deadline=None)
@given(CASES, st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=5), min_size=2, max_size=5))
def test_batched_equals_row_by_row(case, prompts):
    requests = [
        Request(prompt=prompt, max_new_tokens=case["limit"] + b, eos_token_ids=case["eos"])
        for b, prompt in enumerate(prompts)
    ]
    for b, row in enumerate(run(*models(case), policy_of(case), requests)):
        expected = definition(case | {"limit": case["limit"] + b}, prompts[b])
        assert (text(row), writers(row)) == (expected.tokens, expected.writers)
        assert [commit.accepted for commit in row] == expected.accepted


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_large_models_greedy_text_at_the_lossless_ends(case):
    small, large = models(case)
    expected = brute.greedy(large, PROMPT, case["limit"], case["eos"])
    request = Request(prompt=PROMPT, max_new_tokens=case["limit"], eos_token_ids=case["eos"])
    window = {"max_draft_tokens": case["window"]}
    for policy in (
        Policy.bild(fallback_threshold=1.01, rollback_threshold=case["rollback"], **window),
        Policy.bild(fallback_threshold=case["fallback"], rollback_threshold=0, verify_end=True, **window),
        Policy.exact(fallback_threshold=case["fallback"], **window),
        Policy.speculative_sampling(window=case["window"]),
        Policy.large(),
    ):
        assert text(run(small, large, policy, [request])[0]) == expected
    assert text(run(large, large, policy_of(case), [request])[0]) == expected
    assert text(run(small, large, Policy.small(), [request])[0]) == brute.greedy(
        small, PROMPT, case["limit"], case["eos"]
    )


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "reward"])
def test_rows_of_every_preset_go_their_own_way(name):
    small, large, policy = ToyModel(1, blend=0.8), ToyModel(2, blend=0.8), Policy.preset(name)
    requests = [Request(prompt=[b, 1], max_new_tokens=9 + b, eos_token_ids=[6]) for b in range(6)]
    together = run(small, large, policy, requests)
    for row, request in zip(together, requests, strict=True):
        (alone,) = run(small, large, policy, [request])
        assert [(c.tokens, c.draft, c.accepted) for c in row] == [(c.tokens, c.draft, c.accepted) for c in alone]


class Script(ToyModel):
    """Writes a given text with given confidences; anything off the text gets a fixed token."""

    def __init__(self, script: list[int], confidence: dict[int, float] | None = None, vocab_size: int = 9):
        super().__init__(0, vocab_size)
        self.script, self.confidence = script, confidence or {}

    def logits(self, prefix):
        at = len(prefix) - 1
        p = self.confidence.get(at, 0.9)
        probabilities = torch.full((self.vocab_size,), (1 - p) / (self.vocab_size - 1), dtype=torch.float64)
        probabilities[self.script[at] if at < len(self.script) else 8] = p
        return probabilities.log()


EOS = 5
REQUEST = Request(prompt=[0], max_new_tokens=6, eos_token_ids=[EOS])


def one(small: Script, large: Script, request: Request = REQUEST, **thresholds) -> list[Commit]:
    defaults = {"fallback_threshold": 0.5, "rollback_threshold": 2.0}
    return run(small, large, Policy.bild(**(defaults | thresholds)), [request])[0]


def shape(row: list[Commit]) -> list[tuple]:
    return [(list(c.draft), c.accepted, list(c.tokens), c.reason) for c in row]


def test_hands_over_at_once():
    row = one(Script([1, 2, 5], {0: 0.4}), Script([3, 2, 5]))
    assert shape(row) == [([], 0, [3], "unsure"), ([2, 5], 2, [2, 5], "end")]
    assert (row[0].doubtful, row[0].steps("small"), row[0].steps("large")) == (1, 1, 1)
    assert row[0].confidences == pytest.approx((0.4,))


def test_window_full_then_bonus():
    row = one(Script([1, 2, 3, 5]), Script([1, 2, 3, 5]), max_draft_tokens=2)
    assert shape(row) == [([1, 2], 2, [1, 2, 3], "window"), ([5], 1, [5], "end")]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_rolls_back_at_any_place_of_the_draft(at):
    right = [1, 2, 3, 5]
    wrong = [*right[:at], 7, *right[at + 1 :]]
    row = one(Script(wrong), Script(right), max_draft_tokens=3)
    assert shape(row)[0] == (wrong[:3], at, right[: at + 1], "window")
    assert row[0].rolled_back and row[0].distances[at] == pytest.approx(-math.log(0.1 / 8))
    assert text(row) == right


def test_end_passes_unread_only_without_verify_end():
    small, large = Script([1, 5]), Script([1, 2, 3, 5])
    unread = one(small, large)
    assert shape(unread) == [([1, 5], 2, [1, 5], "end")]
    assert (unread[0].verified, unread[0].steps("large"), unread[0].finish_reason) == (False, 0, "eos")
    read = one(small, large, verify_end=True)
    assert shape(read)[0] == ([1, 5], 1, [1, 2], "end")
    assert read[0].finish_reason is None and text(read) == [1, 2, 3, 5]


def test_a_doubtful_end_is_read_and_a_confident_one_is_not():
    right, wrong = Script([1, 2, 3, 5]), [1, 5]
    for confidence, tokens in ((0.6, [1, 2]), (0.8, [1, 5])):
        row = one(Script(wrong, {1: confidence}), right, verify_end=0.7)
        assert list(row[0].tokens) == tokens and row[0].verified == (confidence < 0.7)


def test_verified_end_gets_no_bonus():
    row = one(Script([1, 5]), Script([1, 5]), verify_end=True)
    assert shape(row) == [([1, 5], 2, [1, 5], "end")]
    assert (row[0].verified, row[0].steps("large"), row[0].finish_reason) == (True, 1, "eos")


def test_length_limit_inside_a_draft():
    request = Request(prompt=[0], max_new_tokens=2, eos_token_ids=[EOS])
    for verify_end in (False, True):
        row = one(Script([1, 2, 3, 4]), Script([1, 2, 3, 4]), request, verify_end=verify_end)
        assert shape(row) == [([1, 2], 2, [1, 2], "length")]
        assert row[0].finish_reason == "length" and row[0].verified


def test_large_model_writes_the_end():
    row = one(Script([1, 2], {1: 0.2}), Script([1, 5]))
    assert shape(row) == [([1], 1, [1, 5], "unsure")]
    assert row[0].finish_reason == "eos" and row[0].writers == ("small", "large")


def test_stop_rule_ends_a_draft_and_the_large_models_token():
    request = Request(prompt=[0], max_new_tokens=6, stop=lambda tokens: tokens[-1] == 2)
    assert one(Script([1, 2, 3]), Script([1, 2, 3]), request)[-1].finish_reason == "stop"
    assert text(one(Script([1, 4], {1: 0.1}), Script([1, 2, 3]), request)) == [1, 2]


def test_a_token_large_would_choose_stays_whatever_its_distance():
    likely = {0: 0.2}
    read = one(Script([1, 2, 5]), Script([1, 2, 5], likely), rollback_threshold=0.5, verify_end=True)
    assert read[0].distances[0] == pytest.approx(-math.log(0.2)) and read[0].accepted == 3


def test_after_an_agreeing_offender_later_tokens_are_still_judged():
    row = one(Script([1, 7, 5]), Script([1, 2, 5], {0: 0.2}), rollback_threshold=0.5, verify_end=True)
    assert shape(row)[0] == ([1, 7, 5], 1, [1, 2], "end")


def test_one_token_vocabulary():
    row = run(ToyModel(1, 1), ToyModel(2, 1), Policy.bild(), [Request(prompt=[0], max_new_tokens=25)])[0]
    assert text(row) == [0] * 25 and row[-1].finish_reason == "length"


def test_empty_prompt_and_no_room_are_refused():
    with pytest.raises(ValueError, match="at least one prompt token"):
        Request(prompt=[], max_new_tokens=1)
    with pytest.raises(ValueError, match="must be at least 1"):
        Request(prompt=[1], max_new_tokens=0)


def test_processors_see_the_prefix_position_by_position():
    def never_twice(prefix, logits):
        logits = logits.clone()
        logits[prefix[-1]] = -math.inf
        return logits

    small, large = ToyModel(3, blend=0.9), ToyModel(4, blend=0.9)
    request = Request(prompt=[0], max_new_tokens=20, process=never_twice)
    row = run(small, large, Policy.exact(fallback_threshold=0.2), [request])[0]
    expected = [0]
    for _ in range(20):
        expected.append(int(never_twice(expected, large.logits(expected)).argmax()))
    assert text(row) == expected[1:]
    assert any(commit.accepted > 1 for commit in row) and any(commit.rolled_back for commit in row)
