"""Looking a policy up gives what running it gives: the same text by the same passes."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import cache

import pytest

from bild import BigLittleDecoder, Policy
from bild.tuning import Outcome, Reader, Simulator, Tree
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
    Policy.exact(fallback_threshold=0.3, keeps_doubtful=True),
    Policy.bild(fallback_threshold=0.4, rollback_threshold=3.0, verify_end=0.3, keeps_doubtful=True),
    Policy.no_rollback(fallback_threshold=0.3),
    Policy.no_fallback(rollback_threshold=1.0, window=3),
    Policy.speculative_sampling(window=4),
]


@cache
def double(name: str) -> BigLittleDecoder:
    """In 64 bits: a lookup reads tokens in other pieces than a run, and two may be as likely but for rounding."""
    pair = pair_of(name)
    return BigLittleDecoder(*(deepcopy(model.network).double() for model in (pair.large, pair.small)))


def trees_of(pair: BigLittleDecoder, **options) -> list[Tree]:
    return [Tree(job) for job in pair.jobs(inputs_of(6), **options)]


@pytest.mark.parametrize(
    ("name", "eos"),
    [
        pytest.param("t5", [], marks=pytest.mark.thorough),
        ("t5", [4, 9, 13, 17, 21]),
        ("llama", []),
        ("bart", [4, 9, 13, 17, 21]),
    ],
)
def test_looking_up_equals_running(name, eos):
    pair, options = double(name), {"max_new_tokens": 20, "eos_token_id": eos}
    trees = trees_of(pair, **options)
    simulator = Simulator(trees, Reader(pair, trees))
    simulator.run(POLICIES, range(6))
    rolled_back = 0
    for policy in POLICIES:
        for index, result in enumerate(pair.generate(inputs_of(6), policy, **options)):
            outcome, stats = simulator.outcomes[policy][index], result.stats
            assert outcome.tokens == tuple(result.token_ids)
            for count in ("small_steps", "large_steps", "draft_tokens", "accepted_tokens", "rounds"):
                assert getattr(outcome, f"num_{count}") == getattr(stats, f"num_{count}"), count
            rolled_back += stats.num_rollbacks
    assert rolled_back > 5


def test_policies_that_share_a_walk_go_each_their_own_way():
    """A grid finer than what the models say, all at once, against each policy looked up alone on the same trees."""
    pair, options = double("t5"), {"max_new_tokens": 12, "eos_token_id": [4, 9, 13, 17, 21]}
    grid = [
        Policy.bild(
            fallback_threshold=low, rollback_threshold=far, verify_end=end, max_draft_tokens=window, keeps_doubtful=keep
        )
        for low in (0.0, 0.1, 0.25, 0.3, 0.5, 0.9, 1.01)
        for far in (0.0, 0.5, 1.0, 2.5, 6.0, float("inf"))
        for end in (False, 0.3, 0.6, True)
        for window, keep in ((3, True), (10, False))
    ]
    trees = trees_of(pair, **options)
    together = Simulator(trees, Reader(pair, trees))
    together.run(grid, range(6))
    shared = {id(outcome) for of_policy in together.outcomes.values() for outcome in of_policy.values()}
    for policy in grid:
        alone = Simulator(trees, Reader(pair, trees))
        alone.run([policy], range(6))
        assert alone.outcomes[policy] == together.outcomes[policy]
    different = {(index, o) for of_policy in together.outcomes.values() for index, o in of_policy.items()}
    assert 50 < len(different) <= len(shared) < 6 * len(grid) / 3


def test_a_threshold_that_is_met_exactly_is_no_tie():
    """The very numbers of the models as thresholds: hand over strictly below, roll back strictly above."""
    pair, options = double("t5"), {"max_new_tokens": 10, "eos_token_id": []}
    trees = trees_of(pair, **options)
    Simulator(trees, Reader(pair, trees)).run(POLICIES, range(6))
    met = []
    for tree in trees:
        node = tree.root
        while node.draft is not None:
            met.append(node)
            node = node.children[node.draft]
    grid = [
        Policy.bild(fallback_threshold=node.confidence, rollback_threshold=far, verify_end=end)
        for node in met[::5]
        for far in (node.distance, met[0].distance)
        for end in (node.confidence, True)
    ]
    together = Simulator(trees, Reader(pair, trees))
    together.run(grid, range(6))
    for policy in grid:
        alone = Simulator(trees, Reader(pair, trees))
        alone.run([policy], range(6))
        assert alone.outcomes[policy] == together.outcomes[policy]


def test_other_measures_and_metrics_are_looked_up_too():
    pair, options = double("t5"), {"max_new_tokens": 16}
    policy = Policy.bild(measure="entropy", metric="js", fallback_threshold=0.25, rollback_threshold=0.6)
    trees = trees_of(pair, **options)
    simulator = Simulator(trees, Reader(pair, trees, measure="entropy", metric="js"))
    simulator.run([policy], range(6))
    results = pair.generate(inputs_of(6), policy, **options)
    assert [simulator.outcomes[policy][index].tokens for index in range(6)] == [tuple(r.token_ids) for r in results]
    assert sum(result.stats.num_rollbacks for result in results) > 0


def test_texts_longer_than_a_branch_are_read_on():
    pair, options = double("llama"), {"max_new_tokens": 2 * BRANCH + 5, "eos_token_id": []}
    policy = Policy.bild(fallback_threshold=0.0, rollback_threshold=float("inf"), max_draft_tokens=BRANCH + 9)
    trees = trees_of(pair, **options)
    simulator = Simulator(trees, Reader(pair, trees))
    simulator.run([policy], [0])
    assert simulator.outcomes[policy][0].tokens == tuple(
        pair.generate(inputs_of(6)[:1], policy, **options)[0].token_ids
    )


def test_each_prefix_is_read_once_and_never_again_after_a_restart(tmp_path):
    pair, options, file = double("gpt2"), {"max_new_tokens": 12}, tmp_path / "traces.jsonl"
    read = []

    def run(policies: list[Policy]) -> dict[Policy, dict[int, Outcome]]:
        trees = trees_of(pair, **options)
        reader = Reader(pair, trees, file, progress=lambda done, total: read.append(total))
        simulator = Simulator(trees, reader)
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
    # What cannot be computed with is read again.
    branch = json.loads(lines[-1])
    for at, value in (
        (0, -1),
        (0, 9999),
        (0, "0"),
        (1, "x"),
        (2, [*branch[2], 5]),
        (3, [None] * len(branch[3])),
        (4, 7),
    ):
        damaged = [*branch[:at], value, *branch[at + 1 :]]
        file.write_bytes(b"\n".join([*lines[:-1], json.dumps(damaged).encode(), b"xx", b"", b"\xff\0", b"[1]", b""]))
        read.clear()
        assert run(POLICIES) == first, damaged
        assert read == [1], damaged


@pytest.mark.parametrize("policy", [Policy.large(), Policy.typical(), Policy.ensemble(), Policy.adaptive()])
def test_policies_of_other_rules_are_refused(policy):
    pair = double("t5")
    trees = trees_of(pair)
    with pytest.raises(ValueError, match="can be looked up"):
        Simulator(trees, Reader(pair, trees)).run([policy], [0])
