"""The model in between, as a user says it."""

from __future__ import annotations

from bild.decoding import Maker, Policy
from bild.errors import InputError, check_count
from bild.generation.drafting import needs_small

SMALL = "small"
"""The pair's small model stands in between, and something else drafts for it."""


def check_middle(middle: object, window: int, drafter: str | Maker, has_small: bool) -> None:
    """Whether there is something for a middle model to read.

    Raises:
        InputError: the small model in two places, or in none, or a window out of range.
    """
    if middle is None:
        return
    check_count("middle_window", window)
    if middle == SMALL and not has_small:
        raise InputError("middle is the small model, and there is none; name one with small=…")
    if middle == SMALL and needs_small(drafter):
        raise InputError(
            f"middle is the small model, and drafter {str(drafter)!r} needs it too; take one that does not: 'ngram'"
        )


def check_qualifier(policy: Policy, has_middle: bool) -> None:
    """Whether a policy that says what a middle model lets pass has one.

    Raises:
        InputError: there is none.
    """
    if policy.qualifier is not None and not has_middle:
        raise InputError(
            "the policy says what a middle model lets pass, and there is none; name one with middle=… (--middle)"
        )
