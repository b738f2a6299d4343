"""The networks whose steps are timed: the published sizes with random weights, and the bundled pair.

How long a step takes does not depend on what the weights are, so nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.initialization import no_init_weights

from bild.generation.pair import bundled_pair

TILE = 1 << 18
"""Random numbers that are drawn; a larger weight repeats them."""


def t5(d_model: int, d_ff: int, layers: int, heads: int) -> T5Config:
    """A T5 of the 2019 release (relu, tied head of 32128 rows, heads of 64), as in its public config.

    Args:
        d_model: width.
        d_ff: width of the feed-forward layers.
        layers: of the encoder, and as many of the decoder.
        heads: a layer.
    """
    return T5Config(
        vocab_size=32128, d_model=d_model, d_ff=d_ff, num_layers=layers, num_decoder_layers=layers, num_heads=heads
    )


def llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    """A Llama with heads of 64 and a tied head of 32000 rows.

    The 1B shape is Llama-3.2-1B's but for its 128256 rows: nobody trains a 150M model with that vocabulary,
    where the head alone would be two thirds of the small model's step, and a pair must share one.

    Args:
        hidden: width.
        intermediate: width of the feed-forward layers.
        layers: of the decoder.
        heads: a layer.
        kv_heads: of keys and values.
    """
    return LlamaConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip


CONFIGS = {
    "t5-small": t5(512, 2048, layers=6, heads=8),
    "t5-base": t5(768, 3072, layers=12, heads=12),
    "t5-large": t5(1024, 4096, layers=24, heads=16),
    "llama-150m": llama(768, 3072, layers=14, heads=12, kv_heads=4),
    "llama-1b": llama(2048, 8192, layers=16, heads=32, kv_heads=8),
}
BUNDLED = {"bundled-small": "small", "bundled-large": "large"}
SHAPES = (*CONFIGS, *BUNDLED)


def build(shape: str, dtype: torch.dtype) -> PreTrainedModel:
    """A shape's network, the same weights in every dtype.

    Args:
        shape: one of :data:`SHAPES`.
        dtype: of weights and activations.
    """
    if shape in BUNDLED:
        folder = bundled_pair() / BUNDLED[shape]
        network: PreTrainedModel = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=dtype)
        return network.eval()
    return random_network(CONFIGS[shape], dtype)


def random_network(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A network with random matrices (standard deviation 0.02) and norms of one.

    Args:
        config: of an encoder-decoder or decoder-only model.
        dtype: of weights and activations; the values are those that bfloat16 can hold.
    """
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    # Initialising T5-large the ordinary way takes longer than timing it.
    with no_init_weights():
        network: PreTrainedModel = kind.from_config(config, dtype=dtype)
    network.tie_weights()
    tile = torch.randn(TILE, generator=torch.Generator().manual_seed(0)).mul(0.02).bfloat16().to(dtype)
    with torch.no_grad():
        for index, weight in enumerate(network.parameters()):
            # Parameters differ in where they start to read the tile.
            _fill(weight, tile.roll(7919 * index)) if weight.dim() > 1 else weight.fill_(1)
    return network.eval()


def _fill(weight: Tensor, tile: Tensor) -> None:
    flat = weight.view(-1)
    whole = flat.numel() // len(tile) * len(tile)
    flat[:whole].view(-1, len(tile)).copy_(tile)
    flat[whole:].copy_(tile[: flat.numel() - whole])
