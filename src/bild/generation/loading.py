"""The networks of a pair, from the names that a user gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from bild.generation.ensembles import UNCONDITIONED, parse_ensemble
from bild.generation.middle import SMALL
from bild.generation.pair import Pair
from bild.models import (
    check_exit,
    check_outlines,
    check_part,
    exit_layer,
    is_part,
    load_network,
    read_outline,
    read_short_list,
    resolve_dtype,
    round_weights,
    shorten,
)


def load_sides(
    pair: Pair, *, dtype: str | torch.dtype, device: torch.device, **where: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Load what a pair names; each checkpoint once.

    Args:
        pair: the names.
        dtype: as for :meth:`~bild.BigLittleDecoder.from_pretrained`.
        device: where the networks are put.
        where: revision, subfolder and whether code of a checkpoint may run.

    Returns:
        The large network, the small one or what names a part of the large one, and the other arguments of
        :class:`~bild.BigLittleDecoder` about networks.

    Raises:
        LoadError, VocabularyError, InputError: see :mod:`bild.errors`.
    """
    options: dict[str, Any] = {"dtype": resolve_dtype(dtype, device), "device": device, **where}
    large = parse_ensemble(pair.large)
    others = [name for name in (pair.small, pair.middle) if name is not None and name != SMALL]
    sides = {"small": pair.small, "middle": pair.middle}
    parts = {side: name for side, name in sides.items() if name is not None and is_part(name)}
    # One checkpoint on two sides is loaded once, and some sides are a part of the large one.
    wholes = [
        large.base,
        *(name for name in others if name not in parts.values()),
        *(name for name, _ in large.experts if name != UNCONDITIONED),
    ]
    outlines = {name: read_outline(name, **options) for name in dict.fromkeys(wholes)}
    first = outlines[large.base]
    for each in list(outlines.values())[1:] or [first]:
        check_outlines(first, each, device=device, dtype=dtype)
    _check_parts(first, parts)
    networks: dict[str, Any] = {
        name: load_network(each.name, **options, config=each.config) for name, each in outlines.items()
    }
    # What drafts has its short list; a checkpoint that verifies as well keeps its whole head.
    if pair.small is not None and wholes.count(pair.small) == 1:
        shorten_as_told(networks[pair.small], pair.small, **where)
    networks = {name: round_weights(network, dtype) for name, network in networks.items()}

    def side(name: str | None) -> tuple[Any, Any]:
        """Its network, or what names a part of another; and its tokenizer."""
        return (networks[name], outlines[name].tokenizer) if name in networks else (name, first.tokenizer)

    small, small_tokenizer = side(pair.small)
    middle, middle_tokenizer = side(pair.middle)
    rest = {
        "tokenizer": first.tokenizer,
        "small_tokenizer": small_tokenizer,
        "middle": middle,
        "middle_tokenizer": middle_tokenizer,
        "middle_window": pair.middle_window,
        "experts": [(networks.get(name, name), weight) for name, weight in large.experts],
    }
    return networks[large.base], small, rest


def shorten_as_told(
    network: PreTrainedModel, name: str, *, revision: str | None = None, subfolder: str | None = None, **_: Any
) -> None:
    """Shorten the head of a network that drafts to the list beside its checkpoint, if there is one."""
    ids = read_short_list(name, revision=revision, subfolder=subfolder)
    if ids is not None:
        shorten(network, ids)


def _check_parts(large: Any, parts: Mapping[str, str]) -> None:
    """Whether the large model has the part that each side is to be."""
    for side, name in parts.items():
        check_part(large.config, large.name, name, side)
        count = exit_layer(name)
        if count is not None:
            check_exit(large, count, side)
