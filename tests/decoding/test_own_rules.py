"""Rules that a user writes against the contracts: the loop asks them, and does what they say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bild.decoding import LowConfidence, Policy, Request, WithinDistance
from bild.decoding.acceptance import Judgement
from tests.decoding.test_rounds import run, text
from tests.toy import ToyModel

SMALL, LARGE = ToyModel(4, 7, blend=0.7), ToyModel(5, 7, blend=0.7)
LENGTH = 40


@dataclass(frozen=True)
class Doubt:
    """Hand over below a confidence."""

    threshold: float
    window: int | None = None
    keeps_doubtful: bool = False

    def confidence(self, scores):
        return scores.logits.softmax(-1).amax(-1)

    def unsure(self, confidence, row):
        return not confidence >= self.threshold


@dataclass(frozen=True)
class AfterToken(Doubt):
    """Hand over at the token behind a token 3, whatever the confidence; it stays."""

    keeps_doubtful: bool = True

    def unsure(self, confidence, row):
        return row.tokens[-1] == 3


@dataclass(frozen=True)
class AmongFirst:
    """Keep what is among the large model's likeliest tokens."""

    count: int
    lossless = False
    needs_draft_logits = False

    def judge(self, reading):
        own = reading.own()
        first = reading.logits.topk(self.count, dim=-1).indices
        keep = (first == reading.drafted[..., None]).any(-1)
        return Judgement(keep, own, keep.new_zeros(keep.shape, dtype=float))


@dataclass(frozen=True)
class Never(AmongFirst):
    """Keep nothing: the large model writes every token."""

    def judge(self, reading):
        own = reading.own()
        return Judgement(own != own, own, own * 0.0)


def policy(hand_over, acceptance) -> Policy:
    return Policy(hand_over=hand_over, acceptance=acceptance, max_draft_tokens=6, verify_end=True)


def decoded(chosen: Policy) -> Iterator:
    (row,) = run(SMALL, LARGE, chosen, [Request(prompt=[1, 2], max_new_tokens=LENGTH)])
    return row


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_a_hand_over_rule_of_ones_own_that_says_the_same_writes_the_same(threshold):
    own = decoded(policy(Doubt(threshold), WithinDistance(1.0)))
    theirs = decoded(policy(LowConfidence(threshold), WithinDistance(1.0)))
    assert [(each.draft, each.tokens, each.reason) for each in own] == [
        (each.draft, each.tokens, each.reason) for each in theirs
    ]
    assert any(commit.reason == "unsure" for commit in own)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_acceptance_rule_of_ones_own_that_says_the_same_writes_the_same(count):
    own = decoded(policy(LowConfidence(0.2), AmongFirst(count)))
    theirs = decoded(policy(LowConfidence(0.2), WithinDistance(count - 1, "rank")))
    assert text(own) == text(theirs) and any(commit.rolled_back for commit in own)
    assert [commit.accepted for commit in own] == [commit.accepted for commit in theirs]


def test_a_rule_may_look_at_the_tokens_of_the_row():
    rows = decoded(policy(AfterToken(0.0), AmongFirst(7)))
    drafts = [commit.draft for commit in rows]
    # A rule is asked before the token in question is the row's.
    assert all(3 not in draft[:-2] for draft in drafts)
    assert any(3 in draft[-2:-1] for draft in drafts) and any(len(draft) == 6 for draft in drafts)
    # Everything is kept, so each draft stands in the text, and the large model writes the token behind it.
    assert all(commit.accepted == len(commit.draft) for commit in rows)


def test_a_rule_that_keeps_nothing_leaves_the_large_models_text():
    alone = run(SMALL, LARGE, Policy.large(), [Request(prompt=[1, 2], max_new_tokens=LENGTH)])[0]
    rows = decoded(policy(LowConfidence(0.0), Never(1)))
    assert text(rows) == text(alone) and all(commit.accepted == 0 for commit in rows)
