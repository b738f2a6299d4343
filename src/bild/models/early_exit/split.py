"""Cut a network after some of its decoder layers; every weight stays shared."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bild.errors import InputError, LoadError
from bild.models.position_bias import relative_bias_modules

PREFIX = "exit:"


def exit_layer(small: str) -> int | None:
    """N of ``"exit:N"``; None for the name of a checkpoint.

    Raises:
        InputError: ``exit:`` with anything but a number behind it.
    """
    if not small.startswith(PREFIX):
        return None
    number = small.removeprefix(PREFIX)
    if not re.fullmatch(r"[0-9]+", number):
        raise InputError(f"small is {small!r}; write {PREFIX}N, the first N decoder layers of the large model")
    return int(number)


@dataclass(frozen=True)
class Split:
    """A network in two pieces, neither of which holds a weight of its own."""

    network: PreTrainedModel
    """The whole."""
    count: int
    """Decoder layers below the exit."""
    total: int
    """Decoder layers of the whole."""
    small: PreTrainedModel
    """The layers below, with the norm and the head of the whole."""
    upper: PreTrainedModel
    """The layers above, likewise; reads hidden states instead of tokens."""


def split(network: PreTrainedModel, count: int) -> Split:
    """Cut a network after ``count`` decoder layers.

    Raises:
        LoadError: nothing would be left on one side, or its decoder is not one list of layers, or adds positions
            to whatever it reads.
    """
    kind, named = type(network).__name__, _layers_of(network)
    if named is None or hasattr(network.get_decoder(), "embed_positions"):
        raise LoadError(f"{kind} is not built like T5, GPT-2 or Llama and cannot exit early; name a small checkpoint")
    total = len(named[1])
    if not 1 <= count < total:
        raise LoadError(
            f"small is {PREFIX}{count}, but {kind} has {total} decoder layers; "
            + (f"allowed is {PREFIX}1 to {PREFIX}{total - 1}" if total > 1 else "name a small checkpoint")
        )
    small = cut(network, 0, count)
    small.config._name_or_path = f"{PREFIX}{count}"
    return Split(network, count, total, small, cut(network, count, total))


def cut(network: PreTrainedModel, first: int, last: int) -> PreTrainedModel:
    """A network of the decoder layers ``first … last − 1`` of another, whose weights, norm and head it shares.

    One without the first layer reads hidden states (``inputs_embeds``) as they leave the layer before.
    """
    part = _sharing(network)
    decoder = part.get_decoder()
    name, layers = _layers_of(part)
    setattr(decoder, name, layers[first:last])
    for index, layer in enumerate(layers[first:last]):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = index
    decoder.config.num_hidden_layers = last - first
    if part.config.is_encoder_decoder:
        part.config.num_decoder_layers = last - first
    if getattr(decoder.config, "layer_types", None) is not None:
        decoder.config.layer_types = decoder.config.layer_types[first:last]
    if first and hasattr(decoder, "wpe"):
        decoder.wpe = _NoPositions()
    if 0 < first < last:
        _lend_position_bias(network, layers[first])
    return part


def _sharing(network: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules over the same tensors."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})


def _layers_of(network: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    children = network.get_decoder().named_children()
    lists = [(name, child) for name, child in children if isinstance(child, nn.ModuleList)]
    return lists[0] if len(lists) == 1 else None


def _lend_position_bias(network: PreTrainedModel, layer: nn.Module) -> None:
    """T5's first decoder layer computes the relative position bias for all; above the exit another one is first."""
    owners = relative_bias_modules(network)
    if len(owners) != 1:
        return
    attention = next(module for module in layer.modules() if hasattr(module, "has_relative_attention_bias"))
    attention.has_relative_attention_bias = True
    attention.relative_attention_bias = owners[0].relative_attention_bias
    attention.compute_bias = owners[0].compute_bias


class _NoPositions(nn.Module):
    """GPT-2 adds learned positions to whatever it reads; hidden states have theirs already."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)


@contextmanager
def states_of(network: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Gets the hidden states ``[B, T, D]`` behind the last decoder layer of a pass that is run inside."""
    states: list[Tensor] = []

    def take(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    _, layers = _layers_of(network)
    hook = layers[-1].register_forward_hook(take)
    try:
        yield states
    finally:
        hook.remove()


@contextmanager
def without_head(network: PreTrainedModel) -> Iterator[None]:
    """Passes run inside score no position."""
    hook = network.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :0],))
    try:
        yield
    finally:
        hook.remove()
