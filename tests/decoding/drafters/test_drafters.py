"""What holds for every drafter: the text is the rule's, whoever proposes, and a row is nobody else's."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import (
    Bandit,
    Batch,
    Commit,
    Draft,
    First,
    Greedy,
    LocalVerifier,
    NGram,
    Policy,
    Replay,
    Request,
    Row,
    Rules,
    Sampling,
)
from tests.decoding.drafters.makers import LARGE, MAKERS, VOCAB, Random, small, texts, tokens
from tests.toy import ToyScorer

FIXED = [name for name in MAKERS if name not in ("random", "first of three", "exp3")]
"""Drafters whose proposals depend on the row alone."""
EXACT = Policy.exact(fallback_threshold=0.4, max_draft_tokens=6)


def request(seed: int) -> Request:
    rng = random.Random(seed)
    return Request(
        prompt=[rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))],
        source=[rng.randrange(VOCAB) for _ in range(rng.choice([0, 1, 9]))],
        max_new_tokens=rng.randint(1, 24),
        eos_token_ids=[3] if rng.random() < 0.5 else [],
        stop=(lambda tokens: tokens[-3:] == [1, 2, 1]) if rng.random() < 0.3 else None,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_the_exact_rule_gives_the_large_models_text_with_any_drafter(name, seed):
    rng = random.Random(seed)
    requests = [request(seed + at) for at in range(rng.choice([1, 8]))]
    choice = rng.choice([Greedy(), Sampling()])
    drafted = texts(requests, EXACT, MAKERS[name](len(requests)), choice=choice)
    again = [request(seed + at) for at in range(len(requests))]
    alone = texts(again, Policy.large(), None, choice=choice)
    assert [tokens(row) for row in drafted] == [tokens(row) for row in alone]
    assert [row[-1].finish_reason for row in drafted] == [row[-1].finish_reason for row in alone]


@pytest.mark.parametrize("name", MAKERS)
def test_every_drafter_is_kept_and_rolled_back_and_signs_its_tokens(name):
    """The test above would say nothing of drafters whose tokens never stay, or always do."""
    commits = [commit for row in texts([request(s) for s in range(40)], EXACT, MAKERS[name](40)) for commit in row]
    assert sum(commit.rolled_back for commit in commits) > 10
    assert sum(commit.accepted for commit in commits) > 8
    writers = {writer for commit in commits for writer in commit.writers}
    own = {
        "source": {"ngram"}, "first": {"ngram", "small"}, "first of three": {"ngram", "small"},
        "ucb": {"ngram", "small"}, "exp3": {"ngram", "small", "random"}, "halving": {"ngram", "small"},
        "exp3 of two": {"ngram", "small"},
        "nested": {"ngram", "small"},
        "cascade": {"middle", "small"}, "cascade of n-grams": {"middle", "ngram"},
        "cascade of four": {"middle", "low", "backoff"}, "cascade of several": {"middle", "ngram", "replay", "small"},
    }  # fmt: skip
    assert writers == {"large"} | own.get(name, {name})


POLICIES = [
    EXACT,
    Policy.bild(fallback_threshold=0.4, rollback_threshold=1.0, max_draft_tokens=5),
    Policy.speculative_sampling(window=3),
    Policy.adaptive(prior=1),
]


def batch_of(name: str, seeds: list[int], base: int) -> Batch:
    rows = [Row(at, request(base + at), Rules(POLICIES[at % len(POLICIES)], Sampling())) for at in seeds]
    return Batch(rows, LocalVerifier(ToyScorer(LARGE, len(rows))), MAKERS[name](len(rows)), VOCAB)


def facts(commits: list[Commit]) -> list[tuple]:
    return [(c.tokens, c.writers, c.draft, c.accepted, c.reason, c.verified, c.finish_reason) for c in commits]


@pytest.mark.parametrize("name", FIXED)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_rows_that_join_and_leave_at_any_round_are_decoded_as_alone(name, seed):
    rng = random.Random(seed)
    waiting = list(range(rng.randint(2, 8)))
    expected = {}
    for at in waiting:
        batch, expected[at] = batch_of(name, [at], seed), []
        while batch.rows:
            expected[at] += batch.round()
    found: dict[int, list[Commit]] = {at: [] for at in waiting}
    batch, cancelled = batch_of(name, [waiting.pop()], seed), set()
    while batch.rows or waiting:
        if waiting and (not batch.rows or rng.random() < 0.4):
            joining = batch_of(name, [waiting.pop() for _ in range(rng.randint(1, len(waiting)))], seed)
            for _ in range(rng.randint(0, 2)):
                joining.read(rng.randint(1, 3))
            batch.join(joining)
        if len(batch.rows) > 1 and rng.random() < 0.1:
            place = rng.randrange(len(batch.rows))
            cancelled.add(batch.rows[place].index)
            batch.keep([b for b in range(len(batch.rows)) if b != place])
        for commit in batch.round():
            found[commit.row].append(commit)
    for at, commits in found.items():
        assert facts(commits) == facts(expected[at][: len(commits)] if at in cancelled else expected[at])


def test_a_small_model_that_others_wrote_past_catches_up():
    """More than one compiled pass holds, in one piece or in many."""

    class Early(Random):
        """Writes what the large model would, for the first hundred tokens."""

        def _of(self, row, room):
            draft = Draft(writer=self.name, certain=True, reason="nothing" if room else None)
            while len(draft.tokens) < room and len(row.tokens) < 100:
                row.tokens.append(int(LARGE.logits(row.tokens).argmax()))
                draft.tokens.append(row.tokens[-1])
                draft.reason = "window"
            return draft

    (commits,) = texts([Request(prompt=[1], max_new_tokens=140)], EXACT, First([Early(), small(1)]))
    wrote = [commit for commit in commits if commit.steps("small")]
    assert sum(len(commit.tokens) for commit in commits) == 140
    assert wrote[0].work["small"].read >= 100 and all(commit.work["small"].read <= 8 for commit in wrote[1:])


def test_a_drafter_of_several_needs_one():
    for kind in (First, Bandit):
        with pytest.raises(ValueError, match="at least one, got none"):
            kind([])


class RollingToy(ToyScorer):
    """Writes several of its likeliest tokens in one call, as compiled models do."""

    rolls = True
    called = 0

    def roll(self, tokens, most, take, halts):
        self.called += 1
        assert halts == [None] * len(tokens) and 1 <= most <= 8
        passes, going = [0] * len(tokens), [b for b, row in enumerate(tokens) if row]
        new = list(tokens)
        while going and most > 0:
            _, summary = self.summarize([new[b] if b in going else [] for b in range(len(tokens))])
            most -= 1
            for b in list(going):
                passes[b] += 1
                token = int(summary.likeliest[b, -1])
                new[b] = [token]
                if not take(b, token, float(summary.probability[b, -1])):
                    going.remove(b)
        return passes


SOMETIMES = {
    "text": lambda: NGram(shortest=3, longest=4),
    "source": lambda: NGram(shortest=2, look_in="source"),
    "replay": lambda: Replay([[1, 2, 3, 1, 2, 0, 1, 2]] * 4),
}
"""Drafters that are silent for a while."""


@pytest.mark.parametrize("name", SOMETIMES)
@pytest.mark.parametrize("policy", [EXACT, POLICIES[1], Policy.speculative_sampling(window=3), Policy.adaptive()])
def test_where_drafters_are_silent_the_large_model_writes_on_round_by_round_the_same(name, policy):
    def rounds(kind: type[ToyScorer], seeds: list[int]) -> tuple[dict[int, list[Commit]], ToyScorer]:
        rows = [Row(at, replace(request(seed), stop=None), Rules(policy)) for at, seed in enumerate(seeds)]
        found: dict[int, list[Commit]] = {at: [] for at in range(len(seeds))}
        batch = Batch(rows, LocalVerifier(scorer := kind(LARGE, len(rows))), SOMETIMES[name](), VOCAB)
        while batch.rows:
            for commit in batch.round():
                found[commit.row].append(commit)
        return found, scorer

    for seeds in ([3], [3, 11, 5, 8]):
        (expected, step_by_step), (found, rolling) = (rounds(kind, seeds) for kind in (ToyScorer, RollingToy))
        assert found == expected and any(c.reason == "nothing" for row in found.values() for c in row)
        assert (rolling.called > 0) == (policy.acceptance.lossless or policy is POLICIES[1])
        if len(seeds) == 1:
            assert rolling.passes == step_by_step.passes
