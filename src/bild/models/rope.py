"""Rotary positions whose frequencies depend on how long a text is, and how far a table of them reaches.

LongRoPE (Phi-3) has two sets of frequencies: texts longer than the model was first trained on use the second, for
all of their tokens. transformers chooses one for a whole batch and writes it into the module; here each row has its
own, and nothing is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

STRETCHING = ("linear", "yarn", "llama3", "longrope")
"""Kinds that reach ``factor`` times as far as the model was trained to; the configuration alone says how."""


def parameters_of(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """What a decoder's configuration says of its rotary positions, one of each kind of layer; nothing without any."""
    found = getattr(config, "rope_parameters", None)
    if not found:
        return []
    nested = [each for each in found.values() if isinstance(each, dict)]
    return nested if nested else [found]


def switches_at(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest text that uses the first of two sets of frequencies; None where there is one set."""
    for each in parameters_of(config):
        if each.get("rope_type") == "longrope":
            return int(each["original_max_position_embeddings"])
    return None


def reach(config: PreTrainedConfig, stated: int) -> int:
    """Tokens of the longest text, where the configuration states ``stated``."""
    reaches = [stated]
    for each in parameters_of(config):
        if each.get("rope_type") in STRETCHING and each.get("factor"):
            original = each.get("original_max_position_embeddings")
            reaches.append(int(each["factor"] * (stated if original is None else original)))
    return max(reaches)


def switching(network: PreTrainedModel) -> list[Any]:
    """The modules of a network that choose between two sets of frequencies, in a way that is known here."""
    found = [module for module in network.modules() if getattr(module, "rope_type", None) == "longrope"]
    return [module for module in found if _is_known(module)]


def by_row(module: Any, ends: Callable[[], Tensor | None]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The forward pass of such a module, with the set that suits the length of each row.

    Args:
        module: the rotary embedding, which stays as it is.
        ends: tokens each row of the present pass will have read ``[B]``; None: as many as its positions say.
    """
    original = module.config.rope_parameters["original_max_position_embeddings"]
    # The frequencies that a text of one token more has.
    far, _ = ROPE_INIT_FUNCTIONS["longrope"](module.config, module.inv_freq.device, seq_len=original + 1)
    near_module, far_module = _fixed(module, module.original_inv_freq), _fixed(module, far)

    def forward(x: Tensor, position_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        lengths = ends()
        lengths = position_ids.amax(-1) + 1 if lengths is None else lengths
        near, long = near_module(x, position_ids, **kwargs), far_module(x, position_ids, **kwargs)
        is_long = (lengths.to(x.device) > original)[:, None, None]
        return torch.where(is_long, long[0], near[0]), torch.where(is_long, long[1], near[1])

    return forward


def _is_known(module: Any) -> bool:
    """Whether the two sets are all that changes with the length (Phi-3.5-MoE also scales by it)."""
    original = module.config.rope_parameters["original_max_position_embeddings"]
    positions = torch.tensor([[0, 1], [0, original]], device=module.inv_freq.device)
    x = torch.zeros(1, 1, dtype=torch.float32, device=module.inv_freq.device)
    ours = by_row(module, lambda: None)(x, positions)
    # Each row alone, by a copy, for transformers writes into the module.
    theirs = [copy.deepcopy(module)(x, row[None]) for row in positions]
    return all(torch.equal(own, torch.cat(parts)) for own, parts in zip(ours, zip(*theirs, strict=True), strict=True))


def _fixed(module: nn.Module, frequencies: Tensor) -> Any:
    """The module with one set of frequencies."""
    fixed: Any = copy.copy(module)
    fixed._buffers = dict(module._buffers)
    fixed.inv_freq = frequencies
    fixed.rope_type = "default"
    return fixed
