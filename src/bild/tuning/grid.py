"""Which policies are tried: always some that lose nothing, so that any budget is kept by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from bild.decoding import ExactMatch, FixedWindow, LowConfidence, Policy, RejectionSampling, WithinDistance
from bild.decoding.hand_over import MeasureName
from bild.decoding.presets import DEFAULT_MAX_DRAFT_TOKENS, preset_options

FALLBACK = (0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)
ROLLBACK = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
VERIFY_END: tuple[bool | float, ...] = (False, 0.6, 0.8, True)
DRAFTS = ((10, False), (30, False), (10, True))
"""Longest draft, and whether the token in doubt stays in it."""
KEPT_FROM = 0.35
"""Lowest fallback threshold at which it may stay: what is doubted more than that is seldom right."""
EXACT_FALLBACK = (0.3, 0.5, 0.7, 0.85)
EXACT_WINDOWS = (5, 10, 30)


def default_grid(measure: str = "max_probability", metric: str = "nll") -> list[Policy]:
    """The policies that are tried: thresholds, which ends are read, longest draft, whether the token in doubt stays.

    A rollback threshold of 0.5 nats keeps no token that the large model would not write itself, so the grid reaches
    from the large model's own text to nearly the small one's.
    """
    return [
        Policy.preset(
            "bild",
            fallback_threshold=fallback,
            rollback_threshold=rollback,
            verify_end=end,
            max_draft_tokens=window,
            measure=measure,
            metric=metric,
            keeps_doubtful=keeps,
        )
        for fallback, rollback, end, (window, keeps) in itertools.product(FALLBACK, ROLLBACK, VERIFY_END, DRAFTS)
        if fallback >= KEPT_FROM or not keeps
    ]


def exact_policies(measure: MeasureName = "max_probability") -> list[Policy]:
    """Policies that lose nothing by construction; thresholds and windows change their speed alone.

    The token in doubt stays in the draft: it costs the large model one more token to read, and often saves a pass.
    """
    return [
        Policy.exact(fallback_threshold=fallback, max_draft_tokens=window, measure=measure, keeps_doubtful=True)
        for fallback, window in itertools.product(EXACT_FALLBACK, EXACT_WINDOWS)
    ]


def with_exact(grid: Sequence[Policy]) -> list[Policy]:
    """A grid that some policy of keeps any budget: the lossless ones of the grid's measure come first."""
    rules = [policy.hand_over for policy in grid if isinstance(policy.hand_over, LowConfidence)]
    exact = exact_policies(rules[0].measure) if rules else exact_policies()
    return list(dict.fromkeys([*exact, *grid]))


def neighbours(policy: Policy) -> list[Policy]:
    """Policies a small step away, in one number or flag each; none of a policy that has no two thresholds."""
    if not (isinstance(policy.hand_over, LowConfidence) and isinstance(policy.acceptance, WithinDistance)):
        return []
    fallback, rollback = policy.hand_over.threshold, policy.acceptance.threshold
    steps: list[dict[str, Any]] = [
        *({"fallback_threshold": round(fallback + step, 3)} for step in (-0.05, -0.025, 0.025, 0.05)),
        *({"rollback_threshold": round(rollback * factor, 2)} for factor in (0.75, 0.88, 1.12, 1.3)),
        *({"verify_end": end} for end in (0.5, 0.7, 0.9)),
        *({"max_draft_tokens": window} for window in (5, 7, 15, 30)),
        {"keeps_doubtful": not policy.hand_over.keeps_doubtful},
    ]
    return [policy.named("bild", **step) for step in steps if 0 <= step.get("fallback_threshold", 0) <= 1]


def method_name(policy: Policy) -> str:
    """A looked-up policy as ``bild evaluate`` names it."""
    rules, family = policy.to_dict(), _family(policy)
    values = {
        "fallback_threshold": rules["hand_over"].get("threshold"),
        "rollback_threshold": rules["acceptance"].get("threshold"),
        "verify_end": _end(policy.verify_end),
        "max_draft_tokens": policy.max_draft_tokens,
        "window": policy.hand_over.window,
        "measure": rules["hand_over"].get("measure"),
        "metric": rules["acceptance"].get("metric"),
        "keeps_doubtful": "yes" if policy.hand_over.keeps_doubtful else None,
    }
    usual = {"max_draft_tokens": DEFAULT_MAX_DRAFT_TOKENS, "measure": "max_probability", "metric": "nll"}
    said = {key: values[key] for key in values if key in preset_options(family) and values[key] is not None}
    return ":".join([family, *(_option(key, value) for key, value in said.items() if value != usual.get(key))])


def _family(policy: Policy) -> str:
    """The preset that a policy is written as."""
    if isinstance(policy.acceptance, ExactMatch):
        return "exact"
    if isinstance(policy.acceptance, RejectionSampling):
        return "speculative_sampling"
    return "no_fallback" if isinstance(policy.hand_over, FixedWindow) else "bild"


def _end(verify_end: bool | float) -> str | float:
    return verify_end if not isinstance(verify_end, bool) else "yes" if verify_end else "no"


def _option(key: str, value: Any) -> str:
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
