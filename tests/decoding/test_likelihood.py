"""How likely tokens are is recorded, and nothing else changes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from bild.decoding import Batch, Commit, Greedy, LocalVerifier, ModelDrafter, Row, Rules, Sampling
from bild.decoding.likelihood import LOWEST
from tests.decoding.test_batch import EOS, LARGE, POLICIES, SMALL, never_twice, request
from tests.toy import ToyScorer


def decoded(seed: int, logprobs: int | None) -> dict[int, list[Commit]]:
    """Rows of all policies together; one that is alone with the small model has a batch of its own."""
    found: dict[int, list[Commit]] = {}
    rows = []
    for at, policy in enumerate(POLICIES):
        choice = Sampling() if (seed + at) % 2 else Greedy()
        asked = replace(request(100 * seed + at), logprobs=logprobs)
        rows.append(Row(at, asked, Rules(policy, choice)))
    two = [row for row in rows if row.rules.policy.alone != "small"]
    batch = Batch(two, LocalVerifier(ToyScorer(LARGE, len(two))), ModelDrafter(ToyScorer(SMALL, len(two))))
    own = [replace(row.rules, policy=replace(row.rules.policy, alone="large")) for row in rows if row not in two]
    alone = [Row(row.index, row.request, rules) for row, rules in zip(rows[-1:], own, strict=True)]
    for each in (batch, Batch(alone, LocalVerifier(ToyScorer(SMALL), "small"))):
        while each.rows:
            for commit in each.round():
                found.setdefault(commit.row, []).append(commit)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_each_token_has_the_likelihood_its_judge_gives_it_and_the_text_is_the_same(seed):
    plain, asked = decoded(seed, None), decoded(seed, 2)
    for at, commits in asked.items():
        assert [replace(c, scored=(), work={}) for c in commits] == [replace(c, work={}) for c in plain[at]]
        assert all(commit.scored == () for commit in plain[at])
        asking = request(100 * seed + at)
        prefix, model = list(asking.prompt), SMALL if POLICIES[at].alone == "small" else LARGE
        for commit in commits:
            assert [each.token for each in commit.scored] == list(commit.tokens)
            for each in commit.scored:
                logits = model.logits(prefix)
                if asking.process is not None:
                    logits = asking.process(prefix, logits)
                expected = logits.log_softmax(-1).clamp(LOWEST)
                assert each.logprob == pytest.approx(expected[each.token].item(), abs=1e-9)
                best = expected.topk(2)
                assert [token for token, _ in each.likeliest] == best.indices.tolist()
                assert [value for _, value in each.likeliest] == pytest.approx(best.values.tolist(), abs=1e-9)
                prefix.append(each.token)
    assert len(asked) == len(POLICIES) and EOS in [t for commits in asked.values() for c in commits for t in c.tokens]


def test_an_end_that_passes_unread_is_read_for_its_likelihood_and_not_judged():
    rng = random.Random(0)
    found = [commit for seed in rng.sample(range(200), 12) for row in decoded(seed, 0).values() for commit in row]
    unread = [commit for commit in found if not commit.verified]
    assert unread and all(commit.tokens == commit.draft and commit.distances == () for commit in unread)
    assert all(commit.steps("large") == 1 and commit.scored[-1].logprob < 0 for commit in unread)
    assert all(each.likeliest == () for commit in found for each in commit.scored)


def test_what_a_processor_forbids_is_as_unlikely_as_a_number_can_say():
    row = Row(0, replace(request(3), prompt=[2], process=never_twice, logprobs=7), Rules(POLICIES[-2]))
    batch = Batch([row], LocalVerifier(ToyScorer(LARGE)))
    (commit,) = batch.round()
    assert commit.scored[0].likeliest[-1] == (2, LOWEST)
    assert sum(torch.tensor([value for _, value in commit.scored[0].likeliest]).exp()) == pytest.approx(1)


def test_fewer_than_none_cannot_be_asked_for():
    with pytest.raises(ValueError, match="logprobs is -1; allowed is 0 or more, or None"):
        replace(request(1), logprobs=-1)
