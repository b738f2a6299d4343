"""A verifier elsewhere decides as one here does, whatever gets lost on the way."""

from __future__ import annotations

import random

import pytest
import torch

from bild.decoding import Choice, Commit, Greedy, ModelDrafter, Policy, Request, Sampling, decode
from bild.edge.verification import Limits
from bild.edge.wire import ROUNDS
from bild.errors import InputError, VerifierError
from bild.generation import GenerationOptions
from tests.edge.toys import Loop, ToyLarge, far_batch, run, tokens
from tests.engine.toys import EOS, LARGE, SMALL
from tests.toy import ToyScorer

POLICIES = [
    Policy.bild(fallback_threshold=0.3, rollback_threshold=1.0),
    Policy.bild(fallback_threshold=0.3, rollback_threshold=0.3, metric="margin", verify_end=True),
    Policy.bild(fallback_threshold=0.2, rollback_threshold=1, metric="rank", verify_end=0.5),
    Policy.typical(fallback_threshold=0.3),
    Policy.exact(fallback_threshold=0.3, max_draft_tokens=4),
    Policy.key_tokens(fallback_threshold=0.3, rollback_threshold=1.5, surprise_gap=0.7),
    Policy.speculative_sampling(window=3),
    Policy.large(),
]
DRAWS = {"do_sample": True, "temperature": 0.8, "top_k": 5}


def request(seed: int, options: GenerationOptions) -> Request:
    rng = random.Random(seed)
    prompt, longest = [rng.randrange(7) for _ in range(rng.randint(1, 5))], rng.randint(1, 14)
    return Request(
        prompt=prompt,
        max_new_tokens=longest,
        eos_token_ids=[EOS] if rng.random() < 0.7 else [],
        process=options.processor(len(prompt), longest, prompt, torch.device("cpu")),
        generator=torch.Generator().manual_seed(seed) if options.do_sample else None,
    )


def facts(commits: list[Commit]) -> list[tuple]:
    return [(c.tokens, c.writers, c.draft, c.accepted, c.reason, c.verified, c.finish_reason) for c in commits]


def here(asked: Request, policy: Policy, choice: Choice) -> list[Commit]:
    again = Request(**{name: getattr(asked, name) for name in Request.__dataclass_fields__} | {"generator": None})
    if asked.generator is not None:
        object.__setattr__(again, "generator", torch.Generator().manual_seed(asked.generator.initial_seed()))
    drafter = ModelDrafter(ToyScorer(SMALL))
    return list(decode([again], policy, large=ToyScorer(LARGE), drafter=drafter, choice=choice))


def compare(seeds: list[int], policy: Policy, given: dict, loop: Loop, watch=lambda: None) -> None:
    options = GenerationOptions(**given)
    choice = options.choice()
    expected = [here(request(seed, options), policy, choice) for seed in seeds]
    batch = far_batch(loop, [request(seed, options) for seed in seeds], policy, choice, options.to_dict())
    found = run(batch, watch)
    assert [facts(own) for own in found] == [facts(own) for own in expected]
    if not policy.acceptance.needs_draft_logits:
        far, near = ([x for own in side for c in own for x in c.distances] for side in (found, expected))
        assert far == pytest.approx(near, rel=1e-5)


@pytest.mark.parametrize("given", [{}, DRAWS, {"repetition_penalty": 1.4}, DRAWS | {"min_new_tokens": 3}], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy.to_dict())[:60])
def test_elsewhere_is_here(policy, given):
    rng = random.Random(str(given))
    loop = Loop()
    for _ in range(8):
        compare([rng.randrange(10**6) for _ in range(rng.randint(1, 4))], policy, {"eos_token_id": EOS} | given, loop)
    # Texts that are complete leave nothing behind.
    assert loop.engine.load.sessions == 0
    loop.engine.step()
    assert loop.engine.load.rows == 0 and loop.engine.load.cells == 0


@pytest.mark.parametrize("policy", [POLICIES[0], POLICIES[4], POLICIES[6]], ids=["bild", "exact", "rejection"])
def test_a_lost_answer_may_be_asked_for_again(policy):
    rng = random.Random(1)
    loop = Loop(lose=lambda path: path == ROUNDS and rng.random() < 0.4)
    for seed in range(20):
        compare([seed, seed + 100], policy, DRAWS | {"eos_token_id": EOS}, loop)
    assert loop.traffic.retries > 15


def test_a_verifier_that_is_killed_and_started_anew_goes_on_where_it_was():
    rng, killed = random.Random(2), 0

    def kill() -> None:
        nonlocal killed
        if rng.random() < 0.3:
            killed += 1
            loop.restart()

    loop = Loop()
    for seed in range(20):
        compare([seed, seed + 100, seed + 200], POLICIES[6], DRAWS, loop, kill)
        compare([seed, seed + 100], POLICIES[0], {}, loop, kill)
    assert killed > 15


def test_a_verifier_that_stays_away_is_an_error_and_no_other_text():
    loop, options = Loop(), GenerationOptions()
    batch = far_batch(loop, [request(5, options)], POLICIES[4], Greedy(), {})
    expected = tokens(here(request(5, options), POLICIES[4], Greedy()))
    first = [token for commit in batch.round() for token in commit.tokens]
    loop.down = True
    with pytest.raises(VerifierError, match="cannot be reached"):
        list(batch.round())
    assert first and first == expected[: len(first)]


def test_one_number_a_token_is_all_that_rejection_sampling_says_until_a_token_is_rejected():
    loop, sent = Loop(), []
    send = loop.send
    loop.send = lambda path, body=None: (sent.append((path, body)), send(path, body))[1]
    compare([3, 4, 5], Policy.speculative_sampling(window=3), DRAWS, loop)
    rounds = [each for path, body in sent if path == ROUNDS for each in body["rounds"]]
    assert all(len(each["q"]) == len(each["draft"]) for each in rounds if each["draft"])
    asked_again = [each for each in rounds if "row" in each]
    assert 0 < len(asked_again) < len(rounds) - len(asked_again)
    # Top-k leaves five of seven numbers that are not zero.
    exact = Loop()
    compare([3, 4, 5], Policy.exact(), DRAWS, exact)
    assert exact.traffic.bytes_up < loop.traffic.bytes_up


@pytest.mark.parametrize(
    "policy", [Policy.bild(metric="js"), Policy.ensemble(weight=0.5), Policy.adaptive(), Policy.adasd()], ids=str
)
def test_rules_that_need_distributions_are_refused(policy):
    batch = far_batch(Loop(), [request(1, GenerationOptions())], policy, Sampling(), {})
    with pytest.raises(InputError, match="needs more of the small model than a verifier elsewhere is told; allowed"):
        list(batch.round())


def test_a_row_that_draws_needs_a_seed_that_can_be_told():
    asked = Request(prompt=[1], max_new_tokens=3)
    with pytest.raises(InputError, match="no generator of its own"):
        list(far_batch(Loop(), [asked], Policy.exact(), Sampling(), {"do_sample": True}).round())


def test_devices_share_passes():
    alone, together = Loop(), Loop(ToyLarge(), Limits(rows=8))
    options = GenerationOptions()
    for seed in range(6):
        run(far_batch(alone, [request(seed, options)], POLICIES[4], Greedy(), {}))
    found = run(far_batch(together, [request(seed, options) for seed in range(6)], POLICIES[4], Greedy(), {}))
    assert [tokens(own) for own in found] == [
        tokens(here(request(seed, options), POLICIES[4], Greedy())) for seed in range(6)
    ]
    assert together.model.widest == 6 and together.model.passes * 2 < alone.model.passes
