"""A large model that is steered by others, as a user writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel

from bild.data.places import ENSEMBLE
from bild.errors import InputError
from bild.models import EnsembleModel, Model, OtherSource, run_pair

DEFAULT_WEIGHT = 0.5
PARTS = ("base", "plus", "minus", "weight", "guidance")
FORM = (
    "ensemble:base=MODEL,plus=MODEL,minus=MODEL,weight=0.5, of which plus or minus may be left out, or "
    "ensemble:base=MODEL,guidance=1.5"
)
UNCONDITIONED = "unconditioned"
"""In place of an expert's network: the base, as if there were no source."""


class Ensemble(NamedTuple):
    """A model and what steers it.

    Args:
        base: folder, GGUF file or hub name.
        experts: others, each with the weight of its logits.
    """

    base: str
    experts: tuple[tuple[str, float], ...] = ()


def parse_ensemble(text: str) -> Ensemble:
    """Read ``ensemble:base=MODEL,plus=MODEL,minus=MODEL,weight=a``; any other text names a model.

    The logits are ``z_base + a (z_plus - z_minus)``. Without ``minus`` the base takes its place, so that
    ``z + a (z_plus - z)``; without ``plus`` likewise.

    ``guidance=s`` is ``z + (s - 1)(z - z')``, ``z'`` of the base without its source (classifier-free guidance).

    Raises:
        InputError: no base, nothing that steers, another part, or a weight that is no number.
    """
    if not text.startswith(ENSEMBLE):
        return Ensemble(text)
    parts: dict[str, str] = {}
    for part in text.removeprefix(ENSEMBLE).split(","):
        key, equals, value = part.strip().partition("=")
        if key not in PARTS or not equals or not value or key in parts:
            raise InputError(f"large is {text!r}, where {part!r} is not one of its parts; write {FORM}")
        parts[key] = value
    steers = parts.keys() - {"base", "weight"}
    if "base" not in parts or not steers or ("guidance" in steers and len(parts) > 2):
        raise InputError(f"large is {text!r}, which names no base or nothing that steers it; write {FORM}")
    if "guidance" in parts:
        more = _number("guidance", parts["guidance"]) - 1
        return Ensemble(parts["base"], ((parts["base"], more), (UNCONDITIONED, -more)))
    weight = _number("weight", parts.get("weight", str(DEFAULT_WEIGHT)))
    sides = ((parts.get("plus", parts["base"]), weight), (parts.get("minus", parts["base"]), -weight))
    return Ensemble(parts["base"], sides)


def steered(base: Model, experts: Sequence[tuple[PreTrainedModel | str, float]], runtime: str) -> EnsembleModel:
    """A model and what steers it, ready to read.

    Args:
        base: counts once.
        experts: networks, or :data:`UNCONDITIONED`, each with its weight.
        runtime: see :class:`~bild.BigLittleDecoder`.

    Raises:
        InputError: a weight that is no number, or no source that could be left out.
    """
    others: list[tuple[Model, float]] = []
    for network, weight in experts:
        if not isinstance(network, str):
            others.append((base if network is base.network else run_pair(network, network, runtime)[0], weight))
        elif network != UNCONDITIONED:
            raise InputError(f"an expert is {network!r}; give a network, or {UNCONDITIONED!r}")
        elif not base.is_encoder_decoder:
            raise InputError("guidance leaves the source out, and a decoder-only model has none; take plus and minus")
        else:
            others.append((OtherSource(base, [_end(base)]), weight))
    return EnsembleModel(base, others)


def _end(model: Model) -> int:
    end = model.config.eos_token_id
    first = end[0] if isinstance(end, list) else end
    return 0 if first is None else int(first)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name} is {text!r}; allowed is any number")
    return value
