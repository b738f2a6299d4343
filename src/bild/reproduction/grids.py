"""Which policies are looked up: the paper's ranges (section 7.1.2), and more where a budget is to be met."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from bild.decoding import Policy
from bild.tuning.grid import default_grid

FALLBACK = (0.02, 0.05, *(tenths / 10 for tenths in range(1, 10)))
"""The paper's 0.5 to 0.9, and lower: a small model's confidence depends on how it was trained."""
ROLLBACK = tuple(float(nats) for nats in range(1, 11))
WINDOWS = tuple(range(3, 11))
VERIFY_END = (False, 0.6, True)
SMALL_ALONE = Policy.bild(fallback_threshold=0.0, rollback_threshold=float("inf"), max_draft_tokens=1_000_000)
"""Never unsure, never handing over before the end: what the small model writes alone, by its own passes."""


def paper_grid(fallback: Sequence[float] = FALLBACK, rollback: Sequence[float] = ROLLBACK) -> list[Policy]:
    """Algorithm 1 at every pair of thresholds; an end that the small model writes stays unread."""
    return [Policy.bild(fallback_threshold=low, rollback_threshold=far) for low, far in product(fallback, rollback)]


def candidates() -> list[Policy]:
    """What the tables choose from: the paper's grid with three rules for ends, and that of ``bild tune``, as far as
    the token in doubt is dropped as in the paper."""
    grid = [
        Policy.bild(fallback_threshold=low, rollback_threshold=far, verify_end=end)
        for low, far, end in product(FALLBACK, ROLLBACK, VERIFY_END)
    ]
    return list(dict.fromkeys([*grid, *(each for each in default_grid() if not each.hand_over.keeps_doubtful)]))


def without_rollback() -> list[Policy]:
    """Section 4.3: the same fallback thresholds, nothing is ever rolled back."""
    return [Policy.no_rollback(fallback_threshold=low) for low in FALLBACK]


def without_fallback() -> list[Policy]:
    """Section 4.3: windows of 3 to 10 tokens, the same rollback thresholds."""
    return [Policy.no_fallback(window=window, rollback_threshold=far) for window, far in product(WINDOWS, ROLLBACK)]


def speculative() -> list[Policy]:
    """Speculative decoding with every window of the paper."""
    return [Policy.speculative_sampling(window=window) for window in WINDOWS]
