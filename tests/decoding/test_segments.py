"""Segments that a reward judges, by value: the definition, both models alone, and the distribution of a mixture."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import (
    Batch,
    Cascade,
    First,
    LocalVerifier,
    ModelDrafter,
    NGram,
    Policy,
    Request,
    Row,
    Rules,
    Sampling,
    Segments,
    Stats,
    decode,
)
from bild.errors import InputError
from tests.decoding import brute
from tests.decoding.drafters.makers import tokens
from tests.decoding.test_sampling import chi_square_p
from tests.toy import ToyModel, ToyScorer

MARK = 1
SMALL, LARGE = ToyModel(1, 5), ToyModel(2, 5)


class Scripted:
    """A reward that is a function of what stands before a segment and of the segment; counts how often it is asked."""

    def __init__(self, of):
        self.of, self.calls = of, []

    def score(self, rows, drafts):
        self.calls.append(len(rows))
        return [self.of(row.tokens[row.prompt_length : row.segment], row.tokens[row.segment :]) for row in rows]


def segments(of) -> Segments:
    return Segments(Scripted(of), lambda tokens: MARK in tokens)


def hashed(before, segment) -> float:
    """Any number, not even a finite one."""
    value = hash((tuple(before), tuple(segment)))
    return [value % 100 / 100, math.nan, math.inf, -math.inf][0 if value % 7 else value % 4]


def write(requests, policy, own: Segments, drafter=None, **options):
    count = len(requests)
    drafter = ModelDrafter(ToyScorer(SMALL, count)) if drafter is None else drafter
    rows: list[list] = [[] for _ in requests]
    options = {"large": ToyScorer(LARGE, count), "drafter": drafter, "segments": own} | options
    for commit in decode(requests, policy, **options):
        rows[commit.row].append(commit)
    return rows


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9))
def test_equals_the_definition_row_by_row(seed):
    rng = random.Random(seed)
    small, large = (ToyModel(rng.randrange(10**6), 4, blend=rng.random()) for _ in range(2))
    count, window, delta = rng.randint(1, 4), rng.randint(1, 6), rng.random()
    eos = {0} if rng.random() < 0.6 else set()
    requests = [
        Request(
            prompt=[rng.randrange(4) for _ in range(rng.randint(1, 3))],
            max_new_tokens=rng.randint(1, 20),
            eos_token_ids=eos,
        )
        for _ in range(count)
    ]
    own, policy = segments(hashed), Policy.reward(delta=delta, max_draft_tokens=window)
    found = write(requests, policy, own, ModelDrafter(ToyScorer(small, count)), large=ToyScorer(large, count))
    for request, commits in zip(requests, found, strict=True):
        expected = brute.rewarded(
            small, large, list(request.prompt), limit=request.max_new_tokens, eos=eos, window=window, mark=MARK,
            reward=hashed, delta=delta,
        )  # fmt: skip
        assert tokens(commits) == expected.tokens
        assert [writer for commit in commits for writer in commit.writers] == expected.writers
        asked = [commit for commit in commits if commit.reason is not None]
        assert [list(commit.draft) for commit in asked] == expected.drafts
        assert [commit.accepted for commit in asked] == expected.accepted
        assert commits[-1].finish_reason == expected.finish
        # The large model reads no draft: a pass a token that it writes, and none beside.
        assert Stats.of(commits).num_large_steps == expected.writers.count("large")
    assert sum(own.reward.calls) == sum(commit.reason is not None for commits in found for commit in commits)


REQUESTS = [Request(prompt=[a, b], max_new_tokens=18, eos_token_ids=[0]) for a, b in product(range(5), range(5))]


def test_what_always_stays_is_the_small_model_alone_and_what_never_does_the_large_one():
    policy = Policy.reward(max_draft_tokens=6)
    for reward, model, passes in ((1.0, SMALL, 0), (0.0, LARGE, None), (math.nan, LARGE, None)):
        for commits, request in zip(write(REQUESTS, policy, segments(lambda *_, r=reward: r)), REQUESTS, strict=True):
            assert tokens(commits) == brute.greedy(model, list(request.prompt), 18, {0})
            assert passes is None or Stats.of(commits).num_large_steps == passes
    for delta, kept in ((-math.inf, True), (math.inf, False)):
        own = segments(lambda *_: 0.0)
        rows = write(REQUESTS, Policy.reward(delta=delta, max_draft_tokens=6), own)
        assert {writer for row in rows for commit in row for writer in commit.writers} == {"small" if kept else "large"}


def test_a_reward_is_asked_once_a_round_for_all_drafts():
    own = segments(lambda *_: 1.0)
    write(REQUESTS, Policy.reward(max_draft_tokens=6), own)
    assert own.reward.calls[0] == len(REQUESTS) and len(own.reward.calls) <= 18


@pytest.mark.parametrize("broken", ["nothing", "doubt"])
def test_a_draft_that_is_broken_off_is_read_like_any_other(broken):
    """Looked-up tokens that are no whole segment, and scores that are no numbers, are nothing a reward judges."""
    seen = []
    own = segments(lambda before, segment: seen.append((len(before), list(segment))) or 1.0)

    class Doubtful(ModelDrafter):
        def draft(self, rows, room):
            drafts = super().draft(rows, [min(free, 2) for free in room])
            for draft in drafts:
                draft.reason = "unsure" if draft.reason == "window" else draft.reason
            return drafts

    kinds = {"nothing": NGram(shortest=1, window=2), "doubt": Doubtful(ToyScorer(SMALL, len(REQUESTS)))}
    rows = write(REQUESTS, Policy.reward(max_draft_tokens=9), own, kinds[broken])
    for start, segment in seen:
        assert {MARK, 0} & {*segment} or len(segment) == 9 or start + len(segment) == 18
    accepted = 0
    for row, request in zip(rows, REQUESTS, strict=True):
        text = list(request.prompt)
        for commit in row:
            if commit.reason != "segment" and commit.verified:
                accepted += commit.accepted
                assert list(commit.tokens) == brute.greedy(LARGE, text, len(commit.tokens), set())
            text += commit.tokens
    assert accepted > 0


def test_rows_of_other_policies_share_the_batch():
    own = segments(lambda before, segment: len(segment) / 6)
    policies = [(Policy.reward(delta=0.5, max_draft_tokens=6), own), (Policy.bild(), None), (Policy.large(), None)]

    def batch(places: list[int]) -> Batch:
        rows = [Row(at, REQUESTS[at], Rules(policies[at % 3][0], segments=policies[at % 3][1])) for at in places]
        count = len(rows)
        return Batch(rows, LocalVerifier(ToyScorer(LARGE, count)), ModelDrafter(ToyScorer(SMALL, count)))

    together: dict[int, list[int]] = {at: [] for at in range(9)}
    both = batch([*range(9)])
    while both.rows:
        for commit in both.round():
            together[commit.row] += commit.tokens
    for at in range(9):
        alone, one = [], batch([at])
        while one.rows:
            alone += [token for commit in one.round() for token in commit.tokens]
        assert together[at] == alone


def test_a_model_in_between_writes_segments_too():
    middle = ToyModel(3, 5)
    own = segments(lambda *_: 1.0)
    count = len(REQUESTS)

    def drafter():
        return Cascade(ToyScorer(middle, count), ModelDrafter(ToyScorer(SMALL, count)), 2)

    for commits, request in zip(write(REQUESTS, Policy.reward(), own, drafter()), REQUESTS, strict=True):
        assert tokens(commits) == brute.greedy(middle, list(request.prompt), 18, {0})
    rows = write(REQUESTS, Policy.reward(delta=2), own, First([NGram(shortest=4), drafter()]))
    assert [tokens(row) for row in rows] == [brute.greedy(LARGE, list(r.prompt), 18, {0}) for r in REQUESTS]


LENGTH, DRAWS = 3, 2500


def good(before, segment) -> float:
    return float(sum(segment) % 2)


def mixture() -> dict[tuple[int, ...], float]:
    """The distribution of texts of three tokens, segments of at most two: small's draws, or large's in their place."""
    small, large = ToyModel(6, 3), ToyModel(5, 3)
    texts: Counter = Counter()

    def chances(model, prefix, length):
        """Of each segment of up to so many tokens."""
        p = model.logits([0, *prefix]).softmax(-1)
        for token in range(3):
            if token == MARK or length == 1:
                yield (token,), float(p[token])
            else:
                for rest, chance in chances(model, [*prefix, token], length - 1):
                    yield (token, *rest), float(p[token]) * chance

    def go(prefix, chance):
        if len(prefix) == LENGTH:
            texts[tuple(prefix)] += chance
            return
        length = min(2, LENGTH - len(prefix))
        for segment, own in chances(small, prefix, length):
            if good(prefix, list(segment)) >= 0.5:
                go([*prefix, *segment], chance * own)
            else:
                for other, anew in chances(large, prefix, length):
                    go([*prefix, *other], chance * own * anew)

    go([], 1.0)
    return dict(texts)


def drawn() -> Counter:
    requests = [
        Request(prompt=[0], max_new_tokens=LENGTH, generator=torch.Generator().manual_seed(seed))
        for seed in range(DRAWS)
    ]
    rows = write(
        requests, Policy.reward(delta=0.5, max_draft_tokens=2), segments(good),
        ModelDrafter(ToyScorer(ToyModel(6, 3), DRAWS)), large=ToyScorer(ToyModel(5, 3), DRAWS), choice=Sampling(),
    )  # fmt: skip
    return Counter(tuple(tokens(row)) for row in rows)


def test_draws_are_the_mixture_of_the_formula(monkeypatch):
    expected = {text: DRAWS * chance for text, chance in mixture().items()}
    assert sum(expected.values()) == pytest.approx(DRAWS)
    assert chi_square_p(drawn(), expected) > 0.01
    # The control: what was drawn for a rejected segment would be drawn again.
    monkeypatch.setattr(Row, "uniform", lambda row, position, use, level=0: _shared(row, position, use, level))
    assert chi_square_p(drawn(), expected) < 1e-6


def _shared(row, position, use, level):
    stream, row.stream = row.stream, 0
    try:
        return super(Row, row).uniform(position, use, level)
    finally:
        row.stream = stream


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (lambda rows, drafts: 1 / 0, "the reward failed with ZeroDivisionError: division by zero; mend it"),
        (lambda rows, drafts: [0.5], "the reward gave 1 numbers for 2 segments"),
        (lambda rows, drafts: ["good"] * len(rows), "the reward gave str; allowed is a number for each segment"),
    ],
)
def test_a_reward_that_fails_is_one_line_and_takes_nothing_away(reward, says):
    class Failing:
        score = staticmethod(reward)

    rules = Rules(Policy.reward(max_draft_tokens=4), segments=Segments(Failing(), lambda tokens: MARK in tokens))
    rows = [Row(at, Request(prompt=[at], max_new_tokens=9), rules) for at in range(2)]
    batch = Batch(rows, LocalVerifier(ToyScorer(LARGE, 2)), ModelDrafter(ToyScorer(SMALL, 2)))
    with pytest.raises(InputError, match=says) as raised:
        list(batch.round())
    assert "\n" not in str(raised.value) and [row.tokens for row in rows] == [[0], [1]]


def test_a_policy_about_segments_needs_a_judge():
    with pytest.raises(ValueError, match="goes with a reward that judges them"):
        Rules(Policy.reward())
    with pytest.raises(ValueError, match="goes with a reward that judges them"):
        Rules(Policy.bild(), segments=segments(good))


def test_a_segment_that_stays_is_scored_where_the_request_asks_and_changes_no_text():
    own = segments(lambda before, segment: float(len(segment) % 2))
    policy = Policy.reward(delta=0.5, max_draft_tokens=6)
    asked = [replace(request, logprobs=2) for request in REQUESTS]
    for plain, scored, request in zip(write(REQUESTS, policy, own), write(asked, policy, own), REQUESTS, strict=True):
        facts = [[(c.tokens, c.writers, c.accepted, c.verified) for c in row] for row in (plain, scored)]
        assert facts[0] == facts[1] and not any(c.scored for c in plain)
        found = [each for commit in scored for each in commit.scored]
        text, prompt = tokens(scored), list(request.prompt)
        assert len(found) == len(text)
        for at, each in enumerate(found):
            expected = LARGE.logits(prompt + text[:at]).log_softmax(-1)[text[at]]
            assert each.logprob == pytest.approx(float(expected))


def test_a_round_of_short_drafts_leaves_segments_whole():
    own = segments(lambda *_: 1.0)
    rules = Rules(Policy.reward(max_draft_tokens=6), segments=own)
    batch = Batch([Row(0, REQUESTS[7], rules)], LocalVerifier(ToyScorer(LARGE)), ModelDrafter(ToyScorer(SMALL)))
    text = []
    while batch.rows:
        text += [token for commit in batch.round(window=1) for token in commit.tokens]
    assert text == brute.greedy(SMALL, list(REQUESTS[7].prompt), 18, {0})
