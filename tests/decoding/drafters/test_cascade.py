"""A model in between, by value: the definition, the large model's text, and its distribution."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import (
    Cascade,
    ExactMatch,
    FixedWindow,
    ModelDrafter,
    NGram,
    Policy,
    RejectionSampling,
    Replay,
    Request,
    Sampling,
    Stats,
    WithinDistance,
    decode,
)
from tests.decoding import brute
from tests.decoding.drafters.makers import VOCAB, tokens
from tests.decoding.test_sampling import chi_square_p, expected_texts, texts_of
from tests.toy import ToyModel, ToyScorer


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**9))
def test_equals_the_definition(seed):
    rng = random.Random(seed)
    small, middle, large = (ToyModel(rng.randrange(10**6), rng.choice([2, 5]), blend=rng.random()) for _ in range(3))
    middle.vocab_size = large.vocab_size = small.vocab_size
    prompt = [rng.randrange(small.vocab_size) for _ in range(rng.randint(1, 3))]
    limit, eos, verify_end = rng.randint(1, 16), ({0} if rng.random() < 0.6 else set()), rng.random() < 0.5
    fallback, qualifier, rollback = (
        rng.choice([0.0, 0.4, 0.7]),
        rng.choice([0.0, 0.7, 2.0]),
        rng.choice([0.0, 1.0, 3.0]),
    )
    short, window = rng.randint(1, 4), rng.randint(1, 8)
    policy = Policy.bild(
        fallback_threshold=fallback, rollback_threshold=rollback, max_draft_tokens=window, verify_end=verify_end
    )
    policy = Policy(**{**vars(policy), "qualifier": WithinDistance(qualifier)})
    drafter = Cascade(ToyScorer(middle), ModelDrafter(ToyScorer(small)), short)
    request = Request(prompt=prompt, max_new_tokens=limit, eos_token_ids=eos)
    commits = list(decode([request], policy, large=ToyScorer(large), drafter=drafter))
    expected = brute.cascade(
        small, middle, large, prompt, limit=limit, eos=eos, fallback=fallback, qualifier=qualifier, rollback=rollback,
        short=short, window=window, verify_end=verify_end,
    )  # fmt: skip
    assert tokens(commits) == expected.tokens
    assert [writer for commit in commits for writer in commit.writers] == expected.writers
    assert [list(commit.draft) for commit in commits] == expected.drafts
    assert [commit.accepted for commit in commits] == expected.accepted
    assert [commit.reason for commit in commits] == expected.reasons


def cascade(draws: int, level: int = 1, qualifier_of: int = 7, window: int = 2) -> Cascade:
    return Cascade(ToyScorer(ToyModel(qualifier_of, 3), draws), small(draws), window, level=level)


def small(draws: int) -> ModelDrafter:
    return ModelDrafter(ToyScorer(ToyModel(6, 3), draws))


def rejecting(qualifier=None, window: int = 3, hand_over=None) -> Policy:
    return Policy(
        hand_over=FixedWindow() if hand_over is None else hand_over,
        acceptance=RejectionSampling(),
        max_draft_tokens=window,
        verify_end=True,
        qualifier=qualifier,
    )


DRAWS, LENGTH = 3000, 3
LARGE = ToyModel(5, 3)


def chance(policy: Policy, drafter: Cascade) -> float:
    """How likely it is to see the texts of this cascade, if they are the large model's draws."""
    seen = texts_of(policy, drafter, LARGE, DRAWS, LENGTH)
    return chi_square_p(seen, expected_texts(LARGE, lambda logits: logits, LENGTH, DRAWS))


@pytest.mark.parametrize(
    "qualifier",
    [None, ExactMatch(), WithinDistance(0.5), WithinDistance(0.9, "js")],
    ids=["same", "exact", "nll", "js"],
)
def test_three_levels_keep_rejection_sampling_lossless(qualifier):
    assert chance(rejecting(qualifier), cascade(DRAWS)) > 0.01


def test_four_levels_too():
    low = Cascade(ToyScorer(ToyModel(7, 3), DRAWS), small(DRAWS), 1, "low", level=2)
    assert chance(rejecting(), Cascade(ToyScorer(ToyModel(8, 3), DRAWS), low, 2)) > 0.01


def test_two_tests_at_a_position_with_one_number_are_not_lossless():
    """The control: what the levels are for."""
    assert chance(rejecting(), cascade(DRAWS, level=0)) < 1e-6


def test_draws_of_a_lossy_middle_are_not_taken_for_its_own():
    """The control: that tokens within a distance are compared with what they were not drawn from."""

    class Taken(Cascade):
        def draft(self, rows, room):
            drafts = super().draft(rows, room)
            for row, draft in zip(rows, drafts, strict=True):
                draft.certain = False
                draft.logits = [
                    ToyModel(7, 3).logits(row.tokens[: len(row.tokens) - back])
                    for back in range(len(draft.tokens), 0, -1)
                ]
            return drafts

    taken = Taken(ToyScorer(ToyModel(7, 3), DRAWS), small(DRAWS), 2)
    assert chance(rejecting(WithinDistance(0.5)), taken) < 1e-6


def test_a_middle_that_is_the_large_model_is_never_rolled_back():
    large = ToyModel(2, VOCAB)
    requests = [Request(prompt=[seed % VOCAB, seed % 3], max_new_tokens=20) for seed in range(20)]

    def stats(policy: Policy, middle: ToyModel, choice=None) -> Stats:
        drafter = Cascade(ToyScorer(middle, 20), ModelDrafter(ToyScorer(ToyModel(1, VOCAB), 20)))
        return Stats.of(decode(requests, policy, large=ToyScorer(large, 20), drafter=drafter, choice=choice))

    for policy in (Policy.exact(fallback_threshold=0.3), rejecting(window=6)):
        for choice in (None, Sampling()):
            assert stats(policy, large, choice).num_rollbacks == 0
            assert stats(policy, ToyModel(9, VOCAB), choice).num_rollbacks > 20


def test_the_middle_goes_on_where_nothing_is_proposed_below():
    middle, large = ToyModel(3, VOCAB), ToyModel(2, VOCAB)
    asked = Request(prompt=[1], max_new_tokens=12)
    drafter = Cascade(ToyScorer(middle), Replay([]))
    first = next(decode([asked], Policy.exact(max_draft_tokens=4), large=ToyScorer(large), drafter=drafter))
    assert list(first.draft) == brute.greedy(middle, [1], 4, set()) and first.reason == "window"
    assert first.work["middle"].steps == 4 and set(first.writers) <= {"middle", "large"}


def test_a_short_draft_that_fills_the_room_costs_no_pass_for_one_token_more():
    model = ToyModel(3, VOCAB)
    asked = Request(prompt=[1], max_new_tokens=50)
    drafter = Cascade(ToyScorer(model), ModelDrafter(ToyScorer(model)), 3)
    first = next(
        decode([asked], Policy.exact(fallback_threshold=0, max_draft_tokens=7), large=ToyScorer(model), drafter=drafter)
    )
    # Three and one, three: two passes.
    assert first.work["middle"].steps == 2 and first.writers == ("small",) * 3 + ("middle",) + ("small",) * 3 + (
        "large",
    )


@pytest.mark.parametrize("verify_end", [True, False])
def test_an_end_is_read_by_the_middle_and_then_as_the_policy_says(verify_end):
    """The middle rolls an end back that it finds unlikely; one that it keeps, or writes, passes unread by default."""
    small, middle, large = (ToyModel(seed, 3) for seed in (11, 12, 13))
    policy = Policy.bild(fallback_threshold=0, rollback_threshold=9, verify_end=verify_end)
    policy = Policy(**{**vars(policy), "qualifier": ExactMatch()})
    requests = [Request(prompt=[a, b], max_new_tokens=30, eos_token_ids=[0]) for a in range(3) for b in range(3)]
    drafter = Cascade(ToyScorer(middle, 9), ModelDrafter(ToyScorer(small, 9)))
    last = {c.row: c for c in decode(requests, policy, large=ToyScorer(large, 9), drafter=drafter)}
    assert {commit.verified for commit in last.values()} == {verify_end}
    for b, request in enumerate(requests):
        commits = [
            *decode(
                [request],
                policy,
                large=ToyScorer(large),
                drafter=Cascade(ToyScorer(middle), ModelDrafter(ToyScorer(small))),
            )
        ]
        if not verify_end:
            assert tokens(commits) == brute.greedy(middle, list(request.prompt), 30, {0})
        assert commits[-1].tokens == last[b].tokens


def test_a_known_text_goes_on_where_the_middle_stopped():
    """Replay beneath a cascade follows tokens that nobody has committed yet."""
    model = ToyModel(3, VOCAB)
    known = brute.greedy(model, [1], 30, set())
    drafter = Cascade(ToyScorer(model), Replay([known]), 3)
    asked = Request(prompt=[1], max_new_tokens=30)
    commits = list(decode([asked], Policy.exact(max_draft_tokens=8), large=ToyScorer(model), drafter=drafter))
    assert tokens(commits) == known
    assert [writer for commit in commits for writer in commit.writers].count("replay") >= 18


def test_a_window_out_of_range():
    with pytest.raises(ValueError, match="middle_window is 0; allowed is 1 or more"):
        Cascade(ToyScorer(LARGE), NGram(), 0)
