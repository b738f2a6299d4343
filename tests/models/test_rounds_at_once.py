"""Rounds played in one call: the same commits as in the open, number for number."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch

from bild.decoding import Batch, Commit, LocalVerifier, ModelDrafter, Policy, Request, Row, Rules, at_once, rounds
from bild.decoding.acceptance import ExactMatch, RejectionSampling, TypicalAcceptance, WithinDistance
from bild.decoding.hand_over import FixedWindow, LowConfidence
from bild.decoding.scorer import prepare
from bild.errors import ScoreError
from bild.models.compiled import ahead, runner
from bild.models.kernels import building
from tests.compiled import static_model

pytestmark = [
    pytest.mark.compiles,
    pytest.mark.skipif(not building.is_supported(), reason="rows are named where our attention reads them"),
]
PAIRS = {"encoder-decoder": ("t5", "bart"), "decoder-only": ("llama", "qwen2")}
VOCABULARY = 30
# The toys' tokens have a probability of 0.6 and a distance of 9 in the middle, and these among the commonest.
ENDS = {12, 22, 30}
POLICIES = {
    "bild": Policy(hand_over=LowConfidence(0.45), acceptance=WithinDistance(9), max_draft_tokens=6),
    "nearly always": Policy(hand_over=LowConfidence(0), acceptance=WithinDistance(math.inf), max_draft_tokens=3),
    "hands over at once": Policy(hand_over=LowConfidence(2), acceptance=WithinDistance(1)),
    "keeps what it doubts": Policy(
        hand_over=LowConfidence(0.6, keeps_doubtful=True), acceptance=WithinDistance(9), max_draft_tokens=4
    ),
    "reads ends": Policy(hand_over=LowConfidence(0.4), acceptance=WithinDistance(10), verify_end=True),
    "reads unsure ends": Policy(hand_over=LowConfidence(0.4), acceptance=WithinDistance(10), verify_end=0.5),
    "exact": Policy(hand_over=LowConfidence(0.5), acceptance=ExactMatch(), verify_end=True),
    "window": Policy(hand_over=FixedWindow(4), acceptance=WithinDistance(9), verify_end=True),
}
HAPPENS = {
    "bild": {"unsure", "end", "rolled back", "unread"},
    "keeps what it doubts": {"unsure", "rolled back"},
    "reads ends": {"end", "rolled back"},
    "reads unsure ends": {"end", "unread", "read end"},
    "window": {"window", "length", "rolled back"},
}


def begun(kind: str, requests, policy: Policy) -> Batch:
    large, small = map(static_model, PAIRS[kind])
    sources = [list(request.source) for request in requests]
    rows = [Row(index, request, Rules(policy)) for index, request in enumerate(requests)]
    return Batch(rows, LocalVerifier(large.start(sources)), ModelDrafter(small.start(sources)))


def requests_of(kind: str, count: int, seed: int, new: int = 14) -> list[Request]:
    random = Random(seed)

    def tokens(least: int, most: int) -> list[int]:
        return [random.randrange(3, VOCABULARY) for _ in range(random.randint(least, most))]

    encodes = kind == "encoder-decoder"
    return [
        Request(
            prompt=[0] if encodes else tokens(1, 9),
            max_new_tokens=random.randint(new // 2, new),
            eos_token_ids=ENDS,
            source=tokens(2, 8) if encodes else (),
        )
        for _ in range(count)
    ]


def decoded(batch: Batch, most: int):
    """Every row's commits, how many calls wrote them, and what both models had read when there was one left."""
    commits, calls, lengths = {}, 0, []
    while batch.rows:
        for commit in batch.round(most=most):
            commits.setdefault(commit.row, []).append(commit)
        calls += 1
        if batch.rows:
            lengths.append((batch.large.scorer.lengths, batch.drafter.scorer.lengths, len(batch.rows)))
    return commits, calls, lengths


def in_the_open(monkeypatch, *arguments):
    with monkeypatch.context() as patched:
        patched.setattr(rounds, "play", lambda *_: None)
        return decoded(begun(*arguments), 1)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """However slow the machine is, a call plays as many rounds as it may."""
    monkeypatch.setattr(at_once, "PATIENCE_S", 60.0)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", PAIRS)
def test_the_same_commits_as_in_the_open(monkeypatch, kind, count, name):
    seen = set()
    for seed in range(24 // count):
        arguments = kind, requests_of(kind, count, seed), POLICIES[name]
        expected, calls, lengths = in_the_open(monkeypatch, *arguments)
        by_one, calls_by_one, lengths_by_one = decoded(begun(*arguments), 1)
        assert by_one == expected
        assert calls_by_one == calls
        assert lengths_by_one == lengths
        at_a_time, fewer, _ = decoded(begun(*arguments), 100)
        assert at_a_time == expected
        assert fewer == 1
        for commit in (commit for row in expected.values() for commit in row):
            seen |= {commit.reason, "rolled back" if commit.rolled_back else "kept"}
            seen |= {"unread"} if not commit.verified else {"read end"} if commit.reason == "end" else set()
    assert HAPPENS.get(name, set()) <= seen


@pytest.mark.parametrize("kind", PAIRS)
def test_a_text_outgrows_the_storage(monkeypatch, kind):
    policy = Policy(hand_over=LowConfidence(0.3), acceptance=WithinDistance(9), max_draft_tokens=9)
    requests = [
        Request(prompt=[0, 5], max_new_tokens=150, source=[4, 8, 12] if kind == "encoder-decoder" else ())
        for _ in range(2)
    ]
    expected, calls, _ = in_the_open(monkeypatch, kind, requests, policy)
    commits, fewer, _ = decoded(begun(kind, requests, policy), 1000)
    assert commits == expected
    # Storage doubles: 32, 64, 128, 256 columns.
    assert fewer <= 4 < calls


@pytest.mark.parametrize("window", [0, 2, 50])
def test_a_round_may_have_shorter_drafts(monkeypatch, window):
    arguments = "encoder-decoder", requests_of("encoder-decoder", 3, 4), POLICIES["bild"]

    def commits() -> list[Commit]:
        batch, found = begun(*arguments), []
        while batch.rows:
            found += batch.round(window)
        return found

    found = commits()
    monkeypatch.setattr(rounds, "play", lambda *_: None)
    assert found == commits()
    assert max(len(commit.draft) for commit in found) == min(window, POLICIES["bild"].max_draft_tokens)


@pytest.mark.parametrize("kind", PAIRS)
def test_no_round_begins_when_time_is_over(monkeypatch, kind):
    monkeypatch.setattr(at_once, "PATIENCE_S", 0.0)
    arguments = kind, requests_of(kind, 2, 1), POLICIES["bild"]
    _, calls, _ = in_the_open(monkeypatch, *arguments)
    assert decoded(begun(*arguments), 1000)[1] == calls


def test_a_long_prompt_is_read_in_the_open(monkeypatch):
    requests = [Request(prompt=[5, 9, 4] * 40, max_new_tokens=6)]
    expected, *_ = in_the_open(monkeypatch, "decoder-only", requests, POLICIES["bild"])
    batch = begun("decoder-only", requests, POLICIES["bild"])
    assert at_once.play(batch.rows, batch.large, batch.drafter, None, 10) is None
    assert decoded(batch, 1000)[0] == expected


@pytest.mark.parametrize("name", ["bild", "keeps what it doubts", "reads unsure ends", "exact", "hands over at once"])
def test_a_first_draft_is_written_while_sources_are_encoded(monkeypatch, name):
    monkeypatch.setattr(ahead, "has_idle_cores", lambda: True)
    drafted, roll = [], runner.Graph.roll
    monkeypatch.setattr(runner.Graph, "roll", lambda *given: drafted.append(roll(*given)) or drafted[-1])
    for seed in range(12):
        arguments = "encoder-decoder", requests_of("encoder-decoder", 1, seed), POLICIES[name]
        expected, _, lengths = in_the_open(monkeypatch, *arguments)
        drafted.clear()
        batch = begun(*arguments)
        prepare(batch.large.scorer)
        assert batch.large.scorer.is_encoding
        found, calls, _ = decoded(batch, 100)
        assert found == expected and calls == 1
        ((tokens, probabilities),) = drafted
        draft = expected[0][0].draft
        assert tuple(tokens[0][: len(draft)]) == draft and len(tokens[0]) == len(probabilities[0]) > 0
        one_by_one = begun(*arguments)
        prepare(one_by_one.large.scorer)
        assert decoded(one_by_one, 1)[2] == lengths
    # A prompt of several tokens is read in the call itself.
    longer = "encoder-decoder", [Request(prompt=[0, 5], max_new_tokens=9, source=[4, 8, 12])], POLICIES[name]
    expected, *_ = in_the_open(monkeypatch, *longer)
    drafted.clear()
    batch = begun(*longer)
    prepare(batch.large.scorer)
    assert decoded(batch, 100)[0] == expected and not drafted


def test_what_a_model_cannot_follow_is_left_to_the_loop():
    def plays(policy: Policy, **request) -> bool:
        request = Request(prompt=[0, 9], max_new_tokens=14, source=[4, 8, 12], **request)
        batch = begun("encoder-decoder", [request], policy)
        return at_once.play(batch.rows, batch.large, batch.drafter, None, 1) is not None

    assert plays(POLICIES["bild"])
    assert not plays(POLICIES["bild"], stop=lambda tokens: False)
    assert not plays(POLICIES["bild"], process=lambda prefix, logits: logits)
    assert not plays(POLICIES["bild"], logprobs=0)
    assert not plays(Policy(acceptance=TypicalAcceptance()))
    assert not plays(Policy(acceptance=RejectionSampling(), verify_end=True))
    assert not plays(Policy(acceptance=WithinDistance(0.2, "margin")))
    assert not plays(Policy(hand_over=LowConfidence(0.3, "entropy")))
    assert not plays(Policy.preset("adaptive"))
    # The model that decodes alone has nobody who judges it.
    assert not plays(Policy(alone="small"))


def test_scores_that_are_not_numbers(monkeypatch):
    policy = Policy(hand_over=LowConfidence(0.0), acceptance=WithinDistance(math.inf), max_draft_tokens=2)
    requests = [Request(prompt=[0, 9], max_new_tokens=40, source=[4, 8, 12]) for _ in range(2)]
    batch = begun("encoder-decoder", requests, policy)
    assert len(list(batch.round())) == len(batch.rows) == 2
    # What the second row stored of its first token is broken from here on.
    with torch.inference_mode():
        for tensor in batch.large.scorer.placed(2):
            tensor[1, ..., 0, :] = torch.nan
    with pytest.raises(ScoreError, match=r"the large model's scores are not numbers .* in row 1"):
        list(batch.round(most=100))
