"""Cut a network after some of its decoder layers; every weight stays shared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bild.errors import InputError, LoadError
from bild.models.parts import decoder_of
from bild.models.seams import layers_of, relative_bias_modules, sharing

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
        raise InputError(f"an early exit is {small!r}; write {PREFIX}N, the first N decoder layers of the large model")
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
    kind, named = type(network).__name__, layers_of(network)
    if named is None or hasattr(decoder_of(network), "embed_positions"):
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
    part = sharing(network)
    decoder, named = decoder_of(part), layers_of(part)
    assert named is not None
    name, layers = named
    setattr(decoder, name, layers[first:last])
    for index, layer in enumerate(layers[first:last]):
        module: Any
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


def _lend_position_bias(network: PreTrainedModel, layer: nn.Module) -> None:
    """T5's first decoder layer computes the relative position bias for all; above the exit another one is first."""
    owners = relative_bias_modules(network)
    if len(owners) != 1:
        return
    attention: Any = next(module for module in layer.modules() if hasattr(module, "has_relative_attention_bias"))
    attention.has_relative_attention_bias = True
    attention.relative_attention_bias = owners[0].relative_attention_bias
    for name in ("relative_attention_num_buckets", "relative_attention_max_distance"):
        setattr(attention, name, getattr(owners[0], name))


class _NoPositions(nn.Module):
    """GPT-2 adds learned positions to whatever it reads; hidden states have theirs already."""

    def forward(self, positions: Tensor) -> Tensor:
        return torch.zeros((), device=positions.device)
