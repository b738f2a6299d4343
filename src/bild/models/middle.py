"""Three networks: a pair, and a model in between."""

from __future__ import annotations

from transformers import PreTrainedModel

from bild.errors import InputError, LoadError
from bild.models.pairing import run_pair
from bild.models.protocol import Model


def run_three(
    large: PreTrainedModel, small: PreTrainedModel | str, middle: PreTrainedModel | str, runtime: str
) -> tuple[Model, Model, Model]:
    """A large, a small and a middle model, ready to read.

    Args:
        large: network of the accurate model.
        small: network of the cheap one, ``"exit:N"``, or the large network where there is no cheap one.
        middle: network of the model in between, or ``"exit:N"``.
        runtime: see :func:`~bild.models.run_pair`.

    Raises:
        InputError, LoadError: see :func:`~bild.models.run_pair`; both of the others are early exits, or the middle
            model is on another device or larger than the large one.
    """
    if isinstance(middle, str):
        if isinstance(small, str):
            raise InputError(f"small is {small!r} and middle {middle!r}; one of them can be an early exit, not both")
        accurate, between = run_pair(large, middle, runtime)
        return accurate, accurate if small is large else run_pair(small, small, runtime)[0], between
    if middle.device != large.device:
        raise LoadError(f"the models are on {large.device} and {middle.device}; put all on one device")
    sizes = [sum(each.numel() for each in network.parameters()) for network in (middle, large)]
    if sizes[0] > sizes[1]:
        raise LoadError(
            f"the middle model has {sizes[0]:,} parameters and the large one {sizes[1]:,}; name the larger one large"
        )
    accurate, cheap = run_pair(large, small, runtime)
    return accurate, cheap, accurate if middle is large else run_pair(middle, middle, runtime)[0]
