"""Rows that come and go: whatever their neighbours are, each is decoded as if it were alone."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import (
    Batch,
    Choice,
    Commit,
    Draft,
    Greedy,
    LocalVerifier,
    ModelDrafter,
    Policy,
    Request,
    Row,
    Rules,
    Sampling,
    decode,
)
from bild.errors import ScoreError
from tests.toy import ToyModel, ToyScorer, never_twice

EOS = 6
SMALL, LARGE = ToyModel(1, blend=0.75), ToyModel(2, blend=0.75)


def sharpen(logits: torch.Tensor) -> torch.Tensor:
    return logits / 0.7


CHOICES: list[Choice] = [Greedy(), Sampling(), Sampling(sharpen)]
POLICIES = [
    Policy.bild(fallback_threshold=0.4, rollback_threshold=1.0),
    Policy.bild(fallback_threshold=0.3, rollback_threshold=0.5, metric="js", measure="entropy", verify_end=0.7),
    Policy.exact(fallback_threshold=0.3, max_draft_tokens=4),
    Policy.speculative_sampling(window=3),
    Policy.typical(fallback_threshold=0.3),
    Policy.ensemble(weight=0.5, window=2),
    Policy.adaptive(prior=1),
    Policy.large(),
    Policy.small(),
]


def request(seed: int) -> Request:
    rng = random.Random(seed)
    return Request(
        prompt=[rng.randrange(7) for _ in range(rng.randint(1, 6))],
        max_new_tokens=rng.randint(1, 14),
        eos_token_ids=[EOS] if rng.random() < 0.7 else [],
        stop=(lambda tokens: tokens[-2:] == [1, 2]) if rng.random() < 0.3 else None,
        process=never_twice if rng.random() < 0.3 else None,
        generator=torch.Generator().manual_seed(seed),
    )


def rules(seed: int) -> Rules:
    rng = random.Random(seed + 1)
    return Rules(rng.choice(POLICIES), rng.choice(CHOICES))


def batch_of(seeds: list[int]) -> Batch:
    rows = [Row(seed, request(seed), rules(seed)) for seed in seeds]
    return Batch(rows, LocalVerifier(ToyScorer(LARGE, len(rows))), ModelDrafter(ToyScorer(SMALL, len(rows))), 7)


def facts(commits: list[Commit]) -> list[tuple]:
    return [
        (
            *(c.tokens, c.writers, c.draft, c.accepted, c.reason, c.verified, c.finish_reason, c.work, c.doubtful),
            tuple(round(x, 9) for x in c.confidences),
            tuple(round(x, 9) for x in c.distances),
        )
        for c in commits
    ]


def alone(seed: int) -> list[Commit]:
    """By :func:`decode`, a row a batch."""
    asked = rules(seed)
    drafter = ModelDrafter(ToyScorer(SMALL))
    return list(decode([request(seed)], asked.policy, large=ToyScorer(LARGE), drafter=drafter, choice=asked.choice))


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 10**6))
def test_rows_of_any_rules_join_and_leave_without_a_trace(seed):
    rng = random.Random(seed)
    waiting = [1000 * seed + i for i in range(rng.randint(2, 9))]
    expected = {each: facts(alone(each)) for each in waiting}
    found: dict[int, list[Commit]] = {each: [] for each in waiting}
    batch, cancelled = batch_of([waiting.pop()]), set()
    while batch.rows or waiting:
        if waiting and (not batch.rows or rng.random() < 0.5):
            joining = batch_of([waiting.pop() for _ in range(rng.randint(1, len(waiting)))])
            # Prompts may be read in pieces before, or be unread.
            for _ in range(rng.randint(0, 2)):
                joining.read(rng.randint(1, 3))
            batch.join(joining)
        if len(batch.rows) > 1 and rng.random() < 0.1:
            place = rng.randrange(len(batch.rows))
            cancelled.add(batch.rows[place].index)
            batch.keep([b for b in range(len(batch.rows)) if b != place])
        for commit in batch.round():
            found[commit.row].append(commit)
    for each, commits in found.items():
        # Work is all of a row's own, but a prompt that was read before is not read again.
        own, other = ([fact[:7] + fact[8:] for fact in of] for of in (facts(commits), expected[each]))
        assert own == (other if each not in cancelled else other[: len(own)])


def test_rows_of_equal_rules_are_judged_without_a_copy(monkeypatch):
    """One group is the batch itself: its logits lie where the model left them."""
    from bild.decoding import acceptance

    seen, made = [], []
    judge, extend = acceptance.ExactMatch.judge, ToyScorer.extend
    monkeypatch.setattr(
        acceptance.ExactMatch,
        "judge",
        lambda rule, reading: seen.append(reading.logits.data_ptr()) or judge(rule, reading),
    )

    def noting(self, tokens, last=1):
        logits = extend(self, tokens, last)
        if self.model is LARGE:
            made.append(logits)
        return logits

    monkeypatch.setattr(ToyScorer, "extend", noting)
    for policy in (Policy.exact(fallback_threshold=0.3),) * 2:
        shared = Rules(policy)
        rows = [Row(b, Request(prompt=[b], max_new_tokens=6), shared) for b in range(4)]
        batch = Batch(rows, LocalVerifier(ToyScorer(LARGE, 4)), ModelDrafter(ToyScorer(SMALL, 4)))
        list(batch.round())
    assert seen == [logits.data_ptr() for logits in made] and len(seen) == 2


def test_a_narrower_window_bounds_every_draft_and_none_leaves_the_small_model_alone():
    batch = batch_of(list(range(12)))
    passes = batch.drafter.scorer.passes
    commits = list(batch.round(window=0))
    assert batch.drafter.scorer.passes == passes and all(not commit.draft for commit in commits)
    assert max(len(commit.draft) for commit in batch.round(window=2)) == 2


def test_keeping_what_is_not_there_is_refused_and_changes_nothing():
    batch = batch_of([1, 2, 3])
    for wrong in ([0, 0], [2, 1], [3], [-1]):
        with pytest.raises(ValueError, match="cannot keep rows"):
            batch.keep(wrong)
    assert [row.index for row in batch.rows] == [1, 2, 3]
    with pytest.raises(ValueError, match="with a drafter and one without"):
        batch.join(Batch([], LocalVerifier(ToyScorer(LARGE, 0))))


class Wilful(ModelDrafter):
    """Breaks its contract in its third round."""

    def __init__(self, scorer, fault):
        super().__init__(scorer)
        self.fault, self.rounds = fault, 0

    def draft(self, rows, room):
        drafts = super().draft(rows, room)
        self.rounds += 1
        if self.rounds == 3:
            self.fault(rows[-1], drafts[-1])
        return drafts


def beyond_the_vocabulary(row: Row, draft: Draft) -> None:
    row.tokens.append(99)
    draft.tokens.append(99)


def beyond_its_room(row: Row, draft: Draft) -> None:
    for _ in range(20):
        row.tokens.append(1)
        draft.tokens.append(1)


@pytest.mark.parametrize("fault", [beyond_the_vocabulary, beyond_its_room])
def test_a_drafter_that_breaks_its_contract_is_named_and_no_text_is_changed(fault):
    policy = Rules(Policy.exact(fallback_threshold=0.2))
    requests = [Request(prompt=[b, 1], max_new_tokens=20) for b in range(3)]
    rows = [Row(b, each, policy) for b, each in enumerate(requests)]
    batch = Batch(rows, LocalVerifier(ToyScorer(LARGE, 3)), Wilful(ToyScorer(SMALL, 3), fault), vocab_size=7)
    found: dict[int, list[int]] = {b: [] for b in range(3)}
    faults = 0
    while batch.rows:
        try:
            for commit in batch.round():
                found[commit.row] += commit.tokens
        except ValueError as error:
            assert "drafter 'small' proposed" in str(error) and "\n" not in str(error)
            faults += 1
    expected = decode(requests, Policy.large(), large=ToyScorer(LARGE, 3))
    texts: dict[int, list[int]] = {b: [] for b in range(3)}
    for commit in expected:
        texts[commit.row] += commit.tokens
    assert found == texts and faults == 1


class Silent:
    """Never proposes anything."""

    def draft(self, rows, room):
        return [Draft(reason="nothing", writer="silent", certain=True) for _ in rows]

    def read(self, rows, limit):
        return True

    def truncate(self, lengths):
        pass

    keep = join = truncate


def test_a_drafter_with_nothing_to_say_leaves_the_text_to_the_large_model():
    asked = Request(prompt=[1], max_new_tokens=9)
    (with_it, without) = (
        list(decode([asked], policy, large=ToyScorer(LARGE), drafter=drafter))
        for policy, drafter in ((Policy.bild(), Silent()), (Policy.large(), None))
    )
    assert [c.tokens for c in with_it] == [c.tokens for c in without]
    assert {c.reason for c in with_it} == {"nothing"}


class Broken(ToyModel):
    """Scores that are not numbers, from some length on."""

    def __init__(self, model: ToyModel, first: int):
        super().__init__(model.seed, model.vocab_size, blend=model.blend)
        self.first = first

    def logits(self, prefix):
        logits = super().logits(prefix)
        return logits * math.nan if len(prefix) >= self.first else logits


@pytest.mark.parametrize("policy", POLICIES[:7], ids=lambda policy: type(policy.acceptance).__name__)
@pytest.mark.parametrize("choice", CHOICES[:2], ids=["greedy", "sampling"])
def test_scores_that_are_not_numbers_are_doubted_in_the_small_model_and_named_in_the_large(policy, choice):
    def run(small: ToyModel, large: ToyModel) -> list[Commit]:
        asked = Request(prompt=[1, 2], max_new_tokens=12, generator=torch.Generator().manual_seed(3))
        drafter = ModelDrafter(ToyScorer(small))
        return list(decode([asked], policy, large=ToyScorer(large), drafter=drafter, choice=choice))

    commits = run(Broken(SMALL, 5), LARGE)
    assert all(len(commit.draft) == 0 for commit in commits[3:])
    assert sum(len(commit.tokens) for commit in commits) == 12
    with pytest.raises(ScoreError, match=r"the large model's scores are not numbers .* in row 0 after"):
        run(SMALL, Broken(LARGE, 5))


def test_levels_have_random_numbers_of_their_own_and_level_0_keeps_its_own():
    from bild.decoding import Use

    one, other = (
        Row(0, Request(prompt=[0], max_new_tokens=5, generator=torch.Generator().manual_seed(9))) for _ in "ab"
    )
    first = [one.uniform(position, Use.TOKEN) for position in range(1, 70)]
    levels = [[other.uniform(position, Use.TOKEN, level) for position in range(1, 70)] for level in (2, 1, 0)]
    assert levels[2] == first and len({tuple(numbers) for numbers in levels}) == 3
    again = Row(0, Request(prompt=[0], max_new_tokens=5, generator=torch.Generator().manual_seed(9)))
    assert [again.uniform(position, Use.TOKEN, 1) for position in range(1, 70)] == levels[1]
