"""A smaller network of some of the layers of another: embeddings, norms and head stay, and so does the encoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bild.errors import InputError, LoadError
from bild.models.parts import decoder_of, encoder_of
from bild.models.seams import layers_of, relative_bias_modules, sharing

SHARING = "num_kv_shared_layers"
"""What configurations call the number of layers that read the keys and values of others."""
PER_LAYER = ("layer_types", "no_rope_layers", "attention_layers", "mlp_layer_types")
"""Lists of a configuration with an entry for every layer."""


def count_layers(network: PreTrainedModel, *, of_encoder: bool = False) -> int:
    """Decoder layers of a network, or its encoder's.

    Raises:
        LoadError: its layers cannot be dropped, see :func:`check_droppable`.
    """
    check_droppable(network)
    named = list_of_layers(encoder_of(network)) if of_encoder else layers_of(network)
    assert named is not None
    return len(named[1])


def check_droppable(network: PreTrainedModel) -> None:
    """Whether each layer of a network stands for itself.

    Raises:
        LoadError: layers share weights, keys or values, or are not one list.
    """
    kind = type(network).__name__
    shared = getattr(network.config.get_text_config(decoder=True), SHARING, 0)
    if shared:
        raise LoadError(
            f"{kind}: {shared} of its layers read the keys and values of others ({SHARING}), so none can be dropped; "
            "draft with ngram instead (--drafter ngram)"
        )
    stacks = [layers_of(network)]
    if network.config.is_encoder_decoder:
        stacks.append(list_of_layers(encoder_of(network)))
    if any(named is None or not len(named[1]) for named in stacks):
        raise LoadError(f"{kind}: its layers are not one list, as those of T5, GPT-2 and Llama, and cannot be dropped")
    for named in stacks:
        assert named is not None
        weights = [{id(weight) for weight in layer.parameters()} for layer in named[1]]
        if sum(map(len, weights)) != len(set().union(*weights)):
            raise LoadError(
                f"{kind}: its layers share their weights, so none can be dropped; draft with ngram instead "
                "(--drafter ngram)"
            )


def list_of_layers(stack: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The layers of an encoder and what they are called, None where they are not one list."""
    lists = [(name, child) for name, child in stack.named_children() if isinstance(child, nn.ModuleList)]
    return lists[0] if len(lists) == 1 else None


def with_layers(
    network: PreTrainedModel, kept: Sequence[int], kept_encoder: Sequence[int] | None = None
) -> PreTrainedModel:
    """A network of some decoder layers of another, whose weights it shares.

    Args:
        network: left as it is.
        kept: decoder layers, from 0, ascending.
        kept_encoder: of an encoder-decoder, likewise; None: all.

    Raises:
        InputError: a layer that is not there.
        LoadError: layers that cannot be dropped.
    """
    total = count_layers(network)
    _check_there(kept, total)
    part = sharing(network)
    owners = relative_bias_modules(network)
    _keep(part, decoder_of(part), layers_of(part), kept, total)
    if len(owners) == 1 and kept[0] != 0:
        _lend_bias(part, owners[0])
    for name in ("num_decoder_layers", "decoder_layers"):
        if network.config.is_encoder_decoder and hasattr(part.config, name):
            setattr(part.config, name, len(kept))
    if kept_encoder is not None:
        _keep_encoder(network, part, kept_encoder)
    return part


def _keep_encoder(network: PreTrainedModel, part: PreTrainedModel, kept: Sequence[int]) -> None:
    if not network.config.is_encoder_decoder:
        raise InputError("encoder layers are named, but the model has no encoder; leave them out")
    total = count_layers(network, of_encoder=True)
    _check_there(kept, total)
    if kept[0] != 0:
        raise InputError("the first encoder layer is left out, which holds what all others need; keep it")
    _keep(part, encoder_of(part), list_of_layers(encoder_of(part)), kept, total)
    for name in ("num_layers", "encoder_layers", "num_hidden_layers"):
        if isinstance(getattr(part.config, name, None), int):
            setattr(part.config, name, len(kept))


def _check_there(kept: Sequence[int], total: int) -> None:
    missing = [index + 1 for index in kept if not 0 <= index < total]
    if missing or not kept or len(set(kept)) < len(kept):
        said = f"there is no layer {missing[0]}" if missing else "none is named, or one is named twice"
        raise InputError(f"layers: {said}; allowed are different ones of 1 to {total}")


def _keep(
    part: PreTrainedModel, stack: Any, named: tuple[str, nn.ModuleList] | None, kept: Sequence[int], total: int
) -> None:
    """Leave only these layers in a stack, renumbered, and say so in every configuration."""
    assert named is not None
    name, layers = named
    setattr(stack, name, nn.ModuleList([layers[index] for index in kept]))
    for number, index in enumerate(kept):
        module: Any
        for module in layers[index].modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = number
    configs = [stack.config] if part.config.is_encoder_decoder else [stack.config, part.config]
    for config in {id(each): each for each in configs}.values():
        text = config.get_text_config(decoder=True)
        for each in {id(one): one for one in (config, text)}.values():
            _describe(each, kept, total)


def _describe(config: Any, kept: Sequence[int], total: int) -> None:
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = len(kept)
    for name in PER_LAYER:
        values = getattr(config, name, None)
        if isinstance(values, list | tuple) and len(values) == total:
            setattr(config, name, [copy.copy(values[index]) for index in kept])


def _lend_bias(part: PreTrainedModel, owner: Any) -> None:
    """T5's first decoder layer computes the relative position bias for all; another one is first now."""
    named = layers_of(part)
    assert named is not None
    attention: Any = next(each for each in named[1][0].modules() if hasattr(each, "has_relative_attention_bias"))
    attention.has_relative_attention_bias = True
    attention.relative_attention_bias = owner.relative_attention_bias
    for name in ("relative_attention_num_buckets", "relative_attention_max_distance"):
        setattr(attention, name, getattr(owner, name))
