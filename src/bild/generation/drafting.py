"""Who drafts, as a user says it."""

from __future__ import annotations

from bild.decoding import Maker, Policy, Recipe, parse_drafter, searches
from bild.engine import Models, drafts_beams
from bild.errors import InputError


def maker_of(drafter: str | Maker) -> Maker:
    """What makes the drafters of a call.

    Args:
        drafter: text as in ``"first:ngram,small"``, or a function of a :class:`~bild.decoding.Kit`.

    Raises:
        InputError: there is no such drafter.
    """
    if isinstance(drafter, str):
        try:
            return parse_drafter(drafter)
        except ValueError as error:
            raise InputError(str(error)) from None
    if not callable(drafter):
        raise InputError(f"drafter is a {type(drafter).__name__}; give a name as 'first:ngram,small', or a function")
    return drafter


def needs_small(drafter: str | Maker) -> bool:
    """Whether a drafter cannot be made without a small model; of a function nobody knows before it is called.

    Raises:
        InputError: there is no such drafter.
    """
    maker = maker_of(drafter)
    return isinstance(maker, Recipe) and maker.needs_small


def check_small(drafter: str | Maker, has_small: bool) -> None:
    """Whether there is what a drafter needs.

    Raises:
        InputError: there is no such drafter, or it needs a small model and there is none.
    """
    if not has_small and needs_small(drafter):
        raise InputError(
            f"drafter {str(drafter)!r} needs a small model and there is none; name one with small=…, or take 'ngram'"
        )


def check_search(policy: Policy, models: Models) -> None:
    """Whether there is a beam search under a policy, by these models.

    Raises:
        InputError: there is none.
    """
    if not searches(policy):
        raise InputError(
            "a beam search is of one model: take policy 'large', 'small', or 'exact', in which the small model drafts; "
            "or leave num_beams out"
        )
    if models.verifier is not None:
        raise InputError("a beam search needs its model here, and the verifier has it; leave num_beams out")
    if policy.alone is None and not drafts_beams(models):
        raise InputError("layers of a beam search are drafted by the small model and no other; take policy 'large'")
