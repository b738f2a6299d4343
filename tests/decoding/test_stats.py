"""Statistics by value."""

from __future__ import annotations

import pytest

from bild.decoding import Commit, Stats, Work

COMMITS = [
    Commit(row=0, tokens=(1, 2, 9), writers=("small", "small", "large"), draft=(1, 2, 3), accepted=2, reason="window",
           work={"small": Work(3, 3), "large": Work(1, 4)}),
    Commit(row=0, tokens=(4,), writers=("large",), reason="unsure", work={"small": Work(1, 1), "large": Work(1, 1)}),
    Commit(row=0, tokens=(5, 6), writers=("small", "small"), draft=(5, 6), accepted=2, reason="end", verified=False,
           finish_reason="eos", work={"small": Work(2, 2)}),
]  # fmt: skip


def test_counts_and_rates():
    stats = Stats.of(COMMITS)
    assert stats.to_dict() == {
        "num_tokens": 6,
        "num_rounds": 3,
        "num_draft_tokens": 5,
        "num_accepted_tokens": 4,
        "num_unverified_tokens": 2,
        "num_rollbacks": 1,
        "num_small_steps": 6,
        "num_large_steps": 2,
        "num_large_tokens": 2,
        "num_tokens_by_writer": {"small": 4, "large": 2},
        "num_steps_by_model": {"small": 6, "large": 2},
        "hand_overs": {"unsure": 1, "window": 1, "nothing": 0, "segment": 0, "end": 1, "stop": 0, "length": 0},
        "acceptance_rate": pytest.approx(4 / 5),
        "mean_acceptance_length": pytest.approx(1 + 4 / 3),
        "rollback_rate": pytest.approx(1 / 3),
        "large_share": pytest.approx(2 / 6),
    }


def test_total_adds_counts_and_rates_follow():
    total = Stats.total([Stats.of(COMMITS), Stats.of(COMMITS[:1])])
    assert (total.num_tokens, total.num_rounds) == (9, 4)
    counted = {reason: count for reason, count in total.hand_overs.items() if count}
    assert total.num_tokens_by_writer == {"small": 6, "large": 3}
    assert total.num_steps_by_model == {"small": 9, "large": 3}
    assert counted == {"unsure": 1, "window": 2, "end": 1}
    assert total.acceptance_rate == pytest.approx(6 / 8)


def test_rates_without_a_denominator_are_none():
    stats = Stats.of([])
    assert (stats.acceptance_rate, stats.mean_acceptance_length, stats.rollback_rate, stats.large_share) == (None,) * 4
