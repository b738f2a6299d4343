"""Parts of a network by name; transformers' own functions for them are not typed."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bild.errors import InputError

FINAL_NORMS = ("final_layer_norm", "final_layernorm", "norm", "ln_f", "layer_norm")
"""What architectures call the norm between the decoder's last layer and the head."""


def unwrapped(network: Any) -> Any:
    """The network that ``torch.compile`` has wrapped; anything else as it is."""
    return getattr(network, "_orig_mod", network)


def plain_network(network: Any, side: str) -> Any:
    """A network as :func:`unwrapped` gives it; names and None as they are.

    Args:
        network: what came.
        side: what it is to be, for the message.

    Raises:
        InputError: it is no network of transformers.
    """
    plain = unwrapped(network)
    if plain is None or isinstance(plain, str | PreTrainedModel):
        return plain
    raise InputError(
        f"{side} is a {type(plain).__name__}; give a loaded transformers model, or a name to from_pretrained"
    )


def decoder_of(network: Any) -> Any:
    """The decoder, without the head."""
    return network.get_decoder()


def encoder_of(network: Any) -> Any:
    """The encoder."""
    return network.get_encoder()


def head_of(network: Any) -> Any:
    """What turns hidden states into logits, None where there is no such module."""
    return network.get_output_embeddings()


def encoder_config(network: Any) -> Any:
    """The configuration of the encoder; of T5Gemma the whole one's names are silent about its windows."""
    return getattr(encoder_of(network), "config", network.config)


def decoder_config(network: Any) -> Any:
    """Likewise of the decoder."""
    text = network.config.get_text_config(decoder=True)
    return getattr(decoder_of(network), "config", text) if network.config.is_encoder_decoder else text


def final_norm(network: Any) -> Any:
    """What the last decoder layer's states go through before the head; BART and Marian have nothing there."""
    children = dict(decoder_of(network).named_children())
    return next((children[name] for name in FINAL_NORMS if name in children), nn.Identity())


def states_in(cache: Any) -> list[Any]:
    """Keys, then values, of every layer of transformers' cache that has some."""
    layers = [layer for layer in cache.layers if layer.keys is not None and layer.values is not None]
    return [*(layer.keys for layer in layers), *(layer.values for layer in layers)]
