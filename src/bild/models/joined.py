"""What makes an ordinary network one that reads states (:mod:`bild.models.on_states`): a linear layer before its first
one, and a word in its configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from bild.errors import LoadError
from bild.models.parallel import attach_parallel

if TYPE_CHECKING:
    from bild.models.loading.place import Place

MARK = "reads_states"
"""In the configuration of a network that reads states."""
WEIGHT, PARALLEL = "joined.weight", "parallel."
FILE = "model.safetensors"
ALONE = "the small model reads the large one's states and cannot write alone; take another policy"
EMBEDDED = 0.1
"""How much of a token's embedding goes into a new network beside the state."""


def reads_states(network: PreTrainedModel) -> bool:
    """Whether a network reads states of another one beside its tokens."""
    return hasattr(network, "joined")


def add_joined(network: PreTrainedModel) -> None:
    """Let a network read states, in place: at first they go through as they are, and a little of the embedding."""
    width = network.config.get_text_config(decoder=True).hidden_size
    weight = torch.cat([EMBEDDED * torch.eye(width), torch.eye(width)], 1)
    _set(network, weight.to(network.dtype))


@contextmanager
def unreported() -> Iterator[None]:
    """Let transformers say nothing of a weight that it does not know, but we do."""
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def attach_joined(network: PreTrainedModel, place: Place) -> None:
    """Give a network that was loaded from a place what lies there and transformers does not know: the layer that joins,
    and what drafts several tokens at once where it has that.

    Raises:
        LoadError: the layer is not there, or one of the two is of another width.
    """
    width = network.config.get_text_config(decoder=True).hidden_size
    file = place.file(FILE) if place.is_local else None
    try:
        if file is None:
            raise KeyError(WEIGHT)
        with safe_open(file, framework="pt") as opened:
            weight: Tensor = opened.get_tensor(WEIGHT)
            names = list(opened.keys())
            parallel = {
                name.removeprefix(PARALLEL): opened.get_tensor(name) for name in names if name.startswith(PARALLEL)
            }
    except Exception as error:
        raise LoadError(f"{place.name} reads states, but its {WEIGHT} cannot be read; make it anew") from error
    if weight.shape != (width, 2 * width):
        raise LoadError(f"{place.name}: {WEIGHT} is {tuple(weight.shape)}; {(width, 2 * width)} is needed")
    _set(network, weight.to(network.dtype))
    if parallel:
        try:
            attach_parallel(network, parallel)
        except ValueError as error:
            raise LoadError(f"{place.name} drafts several tokens at once, but {error}; make it anew") from None


def joined_layer(network: PreTrainedModel) -> nn.Linear:
    """The layer that joins embedding ``[D]`` and state ``[D]``, in this order, of a network that reads states."""
    module: Any = network
    layer: nn.Linear = module.joined
    return layer


def join_states(network: PreTrainedModel, ids: Tensor, states: Tensor) -> Tensor:
    """What the first layer reads ``[B, T, D]`` of tokens ``[B, T]``.

    Args:
        network: see :func:`reads_states`.
        ids: the tokens.
        states: of the token before each of them ``[B, T, D]``; zero before the first of a text.
    """
    module: Any = network
    embedded = module.get_input_embeddings()(ids)
    joined: Tensor = module.joined(torch.cat([embedded, states.to(embedded.dtype)], -1))
    return joined


def _set(network: PreTrainedModel, weight: Tensor) -> None:
    module: Any = network
    module.joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.joined.weight = nn.Parameter(weight.to(network.device))
    setattr(network.config, MARK, True)
