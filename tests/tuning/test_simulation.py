"""Looking a policy up gives what running it gives: the same text by the same passes."""

from __future__ import annotations

import pytest

from bild import BigLittleDecoder, Policy
from bild.tuning import Outcome, Reader, Tree, simulate
from bild.tuning.simulation import Simulator
from bild.tuning.traces import BRANCH
from tests.models.test_generation_agrees import inputs_of, pair_of

POLICIES = [
    Policy.bild(fallback_threshold=fallback, rollback_threshold=rollback, verify_end=end, max_draft_tokens=window)
    for fallback, rollback, end, window in [
        (0.3, 1.0, False, 10),
        (0.3, 1.0, True, 10),
        (0.5, 3.0, 0.6, 10),
        (0.0, 0.5, True, 3),
        (0.2, 5.0, False, 1),
        (1.01, 2.0, False, 10),
        (0.25, 0.0, True, 4),
    ]
] + [
    Policy.exact(fallback_threshold=0.2, max_draft_tokens=5),
    Policy.no_rollback(fallback_threshold=0.3),
    Policy.no_fallback(rollback_threshold=1.0, window=3),
    Policy.speculative_sampling(window=4),
]


def trees_of(pair: BigLittleDecoder, **options) -> list[Tree]:
    return [Tree(job) for job in pair.jobs(inputs_of(6), **options)]


@pytest.mark.parametrize("name", ["t5", "llama", "bart"])
@pytest.mark.parametrize("eos", [[], [4, 9, 13, 17, 21]])
def test_looking_up_equals_running(name, eos):
    pair, options = pair_of(name), {"max_new_tokens": 20, "eos_token_id": eos}
    trees = trees_of(pair, **options)
    simulator = Simulator(trees, Reader(pair, trees))
    simulator.run(POLICIES, range(6))
    rolled_back = 0
    for policy in POLICIES:
        for index, result in enumerate(pair.generate(inputs_of(6), policy, **options)):
            outcome, stats = simulator.outcomes[index, policy], result.stats
            assert outcome.tokens == tuple(result.token_ids)
            for count in ("small_steps", "large_steps", "draft_tokens", "accepted_tokens", "rounds"):
                assert getattr(outcome, f"num_{count}") == getattr(stats, f"num_{count}"), count
            rolled_back += stats.num_rollbacks
    assert rolled_back > 5


def test_other_measures_and_metrics_are_looked_up_too():
    pair, options = pair_of("t5"), {"max_new_tokens": 16}
    policy = Policy.bild(measure="entropy", metric="js", fallback_threshold=0.25, rollback_threshold=0.6)
    trees = trees_of(pair, **options)
    simulator = Simulator(trees, Reader(pair, trees, measure="entropy", metric="js"))
    simulator.run([policy], range(6))
    results = pair.generate(inputs_of(6), policy, **options)
    assert [simulator.outcomes[index, policy].tokens for index in range(6)] == [tuple(r.token_ids) for r in results]
    assert sum(result.stats.num_rollbacks for result in results) > 0


def test_texts_longer_than_a_branch_are_read_on():
    pair, options = pair_of("llama"), {"max_new_tokens": 2 * BRANCH + 5, "eos_token_id": []}
    policy = Policy.bild(fallback_threshold=0.0, rollback_threshold=float("inf"), max_draft_tokens=BRANCH + 9)
    trees = trees_of(pair, **options)
    simulator = Simulator(trees, Reader(pair, trees))
    simulator.run([policy], [0])
    assert simulator.outcomes[0, policy].tokens == tuple(
        pair.generate(inputs_of(6)[:1], policy, **options)[0].token_ids
    )


def test_each_prefix_is_read_once_and_never_again_after_a_restart(tmp_path):
    pair, options, file = pair_of("gpt2"), {"max_new_tokens": 12}, tmp_path / "traces.jsonl"
    read = []

    def run(policies: list[Policy]) -> dict[tuple[int, Policy], Outcome]:
        trees = trees_of(pair, **options)
        simulator = Simulator(trees, Reader(pair, trees, file), lambda done, total: read.append(done))
        simulator.run(policies, range(6))
        return simulator.outcomes

    first = run(POLICIES)
    assert read
    # A kill may cut the last line.
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    read.clear()
    assert run(POLICIES) == first and read == [1]
    lines = file.read_bytes().splitlines()
    read.clear()
    assert run(POLICIES) == first and not read
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("policy", [Policy.large(), Policy.typical(), Policy.ensemble(), Policy.adaptive()])
def test_policies_of_other_rules_are_refused(policy):
    with pytest.raises(ValueError, match="can be looked up"):
        simulate(trees_of(pair_of("t5"))[0], policy)
