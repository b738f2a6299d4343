"""Measured rows as cells of a table and as values."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from bild.decoding import FixedWindow, Policy, Stats, WithinDistance
from bild.evaluation.cells import interval
from bild.evaluation.summary import MethodFigures, Summary
from bild.tuning.grid import method_name
from bild.tuning.search import Point

HEADING = ("", "policy", "quality", "Δ", "speedup", "by large", "rollbacks")


def policy_name(policy: Policy) -> str:
    """As ``bild evaluate`` takes it."""
    if policy.alone is not None:
        return policy.alone
    if not isinstance(policy.hand_over, FixedWindow):
        return method_name(policy)
    if isinstance(policy.acceptance, WithinDistance):
        return f"no_fallback:window={policy.max_draft_tokens}:rollback_threshold={policy.acceptance.threshold:g}"
    return f"speculative_sampling:window={policy.max_draft_tokens}"


def figures(summary: Summary, name: str, set_name: str) -> MethodFigures:
    """One method on one set."""
    return summary.sets[set_name].methods[name]


def stats(own: MethodFigures) -> Stats:
    """The counts of a policy."""
    assert own.counts is not None
    return Stats(**{field.name: own.counts[field.name] for field in fields(Stats)})


def cells(summary: Summary, name: str, set_name: str, metric: str, policy: str) -> list[str]:
    """One row, under :data:`HEADING`."""
    own = figures(summary, name, set_name)
    alone = name == summary.baseline
    shares = [None if alone else share for share in (own.large_share, own.rollback_rate)]
    return [
        name,
        f"`{policy}`",
        interval(own.quality[metric]),
        "–" if alone else interval(own.difference[metric], sign="+"),
        "1" if alone else interval(own.speedup),
        *("–" if share is None else f"{share:.1%}" for share in shares),
    ]


def values(summary: Summary, name: str, set_name: str, metric: str) -> dict[str, Any]:
    """The same as plain JSON values, each figure with its interval."""
    own = figures(summary, name, set_name)
    estimates = {"quality": own.quality[metric], "difference": own.difference[metric], "speedup": own.speedup}
    return {
        **{key: [one.value, one.low, one.high] for key, one in estimates.items()},
        "large_share": own.large_share,
        "rollback_rate": own.rollback_rate,
        "same_tokens": own.same_tokens,
        "seconds": own.total_s,
        "counts": own.counts,
    }


def point_values(point: Point) -> dict[str, Any]:
    """A looked-up point of one set as plain JSON values."""
    return {
        "policy": policy_name(point.policy),
        "quality": next(iter(point.quality.values())),
        "loss": point.worst_loss,
        "speedup": point.speedup,
        "normalised_latency": 1 / point.speedup,
    }
