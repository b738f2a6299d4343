"""Beam search against the plain one: no cache, no drafts, every sequence scored from its first token."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bild.decoding import Choice, Greedy, Policy, Request, Row, Rules, Sampling
from bild.decoding.beams import BeamBatch
from bild.decoding.beams.noise import Noise
from bild.decoding.commits import Commit, Hypothesis
from bild.decoding.rows import Beams
from bild.errors import ScoreError
from tests.toy import ToyModel, ToyScorer, never_twice

SIZE, EOS = 9, 8
SMALL, LARGE = ToyModel(1, SIZE, blend=0.8), ToyModel(2, SIZE, blend=0.8)
LIKELIEST = Greedy()


def ending(request: Request, tokens: Sequence[int]) -> str | None:
    if tokens[-1] in request.eos_token_ids:
        return "eos"
    if request.stop is not None and request.stop(tokens):
        return "stop"
    return "length" if len(tokens) - len(request.prompt) >= request.max_new_tokens else None


def warp(logits: torch.Tensor) -> torch.Tensor:
    """A temperature of 0.8, and the likeliest six tokens alone."""
    return (logits / 0.8).masked_fill(logits < logits.topk(6).values[..., -1:], -math.inf)


def plain(model: ToyModel, request: Request, beams: Beams, choice: Choice) -> list[Hypothesis]:
    """Beam search as transformers defines it, for a vocabulary that is larger than the continuations it looks at."""
    noise = Noise(request.generator)
    keeps = max(2, 1 + len(request.eos_token_ids)) * beams.width
    live, finished = [(0.0, list(request.prompt))], []
    while True:
        found = []
        for score, tokens in live:
            values = model.logits(tokens).log_softmax(-1)
            if request.process is not None:
                values = request.process(tokens, values)
            chosen_by = values
            if choice.draws:
                values = choice.warped(values[None])[0]
                chosen_by = values + noise.after([tokens], SIZE)[0]
            found += [
                (score + float(value), [*tokens, token], score + float(by))
                for token, (value, by) in enumerate(zip(values, chosen_by, strict=True))
            ]
        found = sorted(found, key=lambda each: -each[2])[:keeps]
        found = sorted((each[:2] for each in found), key=lambda each: -each[0])
        found = [each for each in found if each[0] > -math.inf] or found[:1]
        length = len(found[0][1]) - len(request.prompt)
        full = len(finished) == beams.width
        for score, tokens in found[: beams.width]:
            reason = ending(request, tokens)
            if reason is not None and not (full and beams.early_stopping is True):
                value = score / length**beams.length_penalty
                finished.append(Hypothesis(tuple(tokens[len(request.prompt) :]), value, reason))
        finished = sorted(finished, key=lambda each: -each.score)[: beams.width]
        live = [each for each in found if ending(request, each[1]) is None][: beams.width]
        if not live:
            return finished
        longest = request.max_new_tokens if beams.early_stopping == "never" and beams.length_penalty > 0 else length
        if len(finished) == beams.width and (
            beams.early_stopping is True or live[0][0] / longest**beams.length_penalty <= finished[-1].score
        ):
            return finished


def request(seed: int) -> Request:
    rng = random.Random(seed)
    return Request(
        prompt=[rng.randrange(SIZE) for _ in range(rng.randint(1, 6))],
        max_new_tokens=rng.randint(1, 14),
        eos_token_ids=[[], [EOS], [EOS, 7]][rng.randrange(3)],
        stop=(lambda tokens: tokens[-2:] == [1, 2]) if rng.random() < 0.3 else None,
        process=never_twice if rng.random() < 0.3 else None,
        generator=torch.Generator().manual_seed(seed),
    )


def rules(seed: int, choice: Choice) -> Rules:
    rng = random.Random(seed + 1)
    beams = Beams(
        width=rng.randint(2, 3),
        length_penalty=rng.choice([-1.0, 0.0, 0.6, 1.0, 2.0]),
        early_stopping=rng.choice([True, False, "never"]),
    )
    exact = Policy.exact(fallback_threshold=rng.choice([0.0, 0.5, 0.9]), max_draft_tokens=rng.randint(1, 5))
    return Rules(rng.choice([exact, exact, Policy.large()]), choice, beams=beams)


def batch_of(seeds: Sequence[int], small: ToyModel | None = SMALL, choice: Choice = LIKELIEST) -> BeamBatch:
    rows = [Row(seed, request(seed), rules(seed, choice)) for seed in seeds]
    scorer = None if small is None else ToyScorer(small, len(rows))
    return BeamBatch(rows, ToyScorer(LARGE, len(rows)), scorer)


def finish(batch: BeamBatch) -> dict[int, list[Commit]]:
    commits: dict[int, list[Commit]] = {}
    while batch.rows:
        for commit in batch.round():
            commits.setdefault(commit.row, []).append(commit)
    return commits


def check(seed: int, commits: list[Commit], choice: Choice = LIKELIEST) -> None:
    expected = plain(LARGE, request(seed), rules(seed, choice).beams, choice)
    found = commits[-1].hypotheses
    assert [each[:1] + each[2:] for each in found] == [each[:1] + each[2:] for each in expected]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected])
    text = [token for commit in commits for token in commit.tokens]
    assert text == list(expected[0].tokens) and commits[-1].finish_reason == expected[0].finish_reason
    assert all(commit.finish_reason is None for commit in commits[:-1])
    assert all(len(commit.tokens) == len(commit.writers) for commit in commits)


@given(st.integers(0, 10**6), st.sampled_from([None, SMALL, LARGE]))
@settings(max_examples=300)
def test_the_text_is_that_of_a_plain_search(seed, small):
    check(seed, finish(batch_of([seed], small))[seed])


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=4, unique=True))
@settings(max_examples=60)
def test_texts_do_not_depend_on_their_neighbours(seeds):
    for seed, commits in finish(batch_of(seeds)).items():
        check(seed, commits)


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=3, unique=True), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=60)
def test_texts_that_come_later_and_go_early(seeds, rounds, limit):
    first, second, third = seeds
    batch, commits = batch_of([first, second]), {}

    def play():
        for commit in batch.round():
            commits.setdefault(commit.row, []).append(commit)

    for _ in range(rounds):
        if batch.rows:
            play()
    batch.keep([b for b, row in enumerate(batch.rows) if row.index == first])
    new = batch_of([third])
    while limit and not new.read(limit):
        pass
    batch.join(new)
    while batch.rows:
        play()
    assert {first, third} <= commits.keys()
    check(first, commits[first])
    check(third, commits[third])


@given(st.integers(0, 10**6), st.sampled_from([None, SMALL, LARGE]), st.sampled_from([None, warp]))
@settings(max_examples=200)
def test_a_drawn_text_is_that_of_a_plain_search_with_the_same_noise(seed, small, warp):
    choice = Sampling(warp)
    check(seed, finish(batch_of([seed], small, choice))[seed], choice)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=4, unique=True))
@settings(max_examples=40)
def test_drawn_texts_do_not_depend_on_their_neighbours(seeds):
    choice = Sampling(warp)
    for seed, commits in finish(batch_of(seeds, choice=choice)).items():
        check(seed, commits, choice)


def test_drawn_texts_stand_beside_those_that_are_not():
    choices = [Sampling(), LIKELIEST, Sampling(warp)]
    rows = [Row(seed, request(seed), rules(seed, choice)) for seed, choice in enumerate(choices)]
    batch = BeamBatch(rows, ToyScorer(LARGE, 3), ToyScorer(SMALL, 3))
    for seed, commits in finish(batch).items():
        check(seed, commits, choices[seed])


@pytest.mark.parametrize("choice", [LIKELIEST, Sampling()])
def test_layers_are_accepted_and_rejected(choice):
    batches = [finish(batch_of([seed], choice=choice)) for seed in range(60)]
    commits = [commit for batch in batches for each in batch.values() for commit in each]
    accepted = [commit.accepted for commit in commits if commit.draft]
    assert 0 in accepted and max(accepted) >= 3
    assert any(commit.rolled_back and commit.accepted for commit in commits)
    assert {"small", "large"} == {writer for commit in commits for writer in commit.writers}


def test_a_model_that_drafts_for_itself_reads_fewer_times():
    def passes(small):
        batch = BeamBatch(
            [
                Row(
                    0,
                    Request(prompt=[3], max_new_tokens=20),
                    Rules(Policy.exact(fallback_threshold=0.0), beams=Beams(width=3)),
                )
            ],
            ToyScorer(LARGE),
            ToyScorer(small) if small else None,
        )
        return sum(commit.steps("large") for commit in finish(batch)[0])

    assert passes(None) == 20 and passes(LARGE) <= 4


def test_scores_that_are_no_numbers_are_refused():
    def broken(prefix, logits):
        return logits * math.nan

    row = Row(5, Request(prompt=[3], max_new_tokens=4, process=broken), Rules(Policy.large(), beams=Beams(width=2)))
    with pytest.raises(ScoreError, match=r"not numbers .* in row 5 after 0 new tokens"):
        finish(BeamBatch([row], ToyScorer(LARGE)))


def test_where_all_is_forbidden_the_search_ends():
    row = Row(
        0,
        Request(prompt=[3], max_new_tokens=4, process=lambda _, logits: torch.full_like(logits, -math.inf)),
        Rules(Policy.large(), beams=Beams(width=2)),
    )
    assert len(finish(BeamBatch([row], ToyScorer(LARGE)))[0][-1].hypotheses[0].tokens) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 1}, "a search of 1 beams is none; allowed is 2 or more"),
        ({"width": 2, "length_penalty": math.nan}, "length_penalty is nan; allowed is a finite number"),
        ({"width": 2, "early_stopping": "now"}, "early_stopping is 'now'; allowed are True, False and 'never'"),
    ],
)
def test_what_no_search_can_be(options, message):
    with pytest.raises(ValueError, match=message):
        Beams(**options)


@pytest.mark.parametrize("policy", [Policy.bild(), Policy.typical(), Policy.speculative_sampling()])
def test_beams_go_with_rules_that_keep_to_one_model(policy):
    with pytest.raises(ValueError, match="beams go with exact, large or small"):
        Rules(policy, beams=Beams(width=2))


def test_rows_without_beams_are_for_another_loop():
    with pytest.raises(ValueError, match="row 0 has no beams"):
        BeamBatch([Row(0, Request(prompt=[3], max_new_tokens=4))], ToyScorer(LARGE))
