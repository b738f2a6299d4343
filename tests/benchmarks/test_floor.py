from __future__ import annotations

import pytest
import shapes
import torch
from floor import step_bytes
from torch import nn

from tests.networks import build

SOURCE, PREFIX = [2, 3, 4], [0, 5, 6, 7]


def t5_hand(layers, width, d_ff, inner, heads):
    """Numbers (not bytes) that a step of a relu T5 reads, from the paper's formulas."""
    attention = 4 * width * inner + 2 * width * inner  # self: q k v o; cross: q o
    norms = 3 * width
    position_bias = heads * (len(PREFIX) + 1)
    return layers * (attention + 2 * width * d_ff + norms) + width + width + position_bias


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_t5_reads_its_decoder_but_no_encoder_and_no_cross_keys(dtype, size):
    network = build("t5", layers=2, dtype=dtype, d_ff=48, d_kv=8, num_heads=2, tie_word_embeddings=True)
    config = network.config
    layers, width, inner = config.num_decoder_layers, config.d_model, config.num_heads * config.d_kv
    parts = step_bytes(network, SOURCE, PREFIX)
    assert parts["head"] == config.vocab_size * width * size
    cached = 2 * layers * inner * (len(PREFIX) + 1 + len(SOURCE))
    assert parts["cache"] == cached * size
    assert parts["layers"] == t5_hand(layers, width, config.d_ff, inner, config.num_heads) * size


def test_llama_reads_all_its_layers():
    network = build("llama", layers=2, dtype=torch.float32)
    config = network.config
    parts = step_bytes(network, [], PREFIX)
    table = config.vocab_size * config.hidden_size
    tables = 1 if config.tie_word_embeddings else 2
    parameters = sum(weight.numel() for weight in network.parameters()) - tables * table
    frequencies = network.model.rotary_emb.inv_freq.numel()
    looked_up = config.hidden_size
    assert parts["head"] == 4 * table
    assert parts["layers"] == pytest.approx(4 * (parameters + frequencies + looked_up), rel=0.01)
    head_size = config.hidden_size // config.num_attention_heads
    assert parts["cache"] == 4 * 2 * 2 * config.num_key_value_heads * head_size * (len(PREFIX) + 1)


def test_watching_leaves_no_hooks_behind():
    network = build("t5")
    step_bytes(network, SOURCE, PREFIX)
    assert not any(module._forward_hooks for module in network.modules())


def test_a_layer_that_stores_a_byte_a_weight_counts_its_bytes():
    class ByteLinear(nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.register_buffer("weight", torch.zeros(linear.weight.shape, dtype=torch.int8))
            self.register_buffer("scale", torch.ones(len(linear.weight)))

        def forward(self, inputs):
            return inputs @ (self.weight.to(inputs.dtype) * self.scale[:, None].to(inputs.dtype)).T

    network = build("llama", layers=2, dtype=torch.float32)
    before = step_bytes(network, [], PREFIX)["layers"]
    projection = network.model.layers[0].mlp.up_proj
    rows, columns = projection.weight.shape
    network.model.layers[0].mlp.up_proj = ByteLinear(projection)
    assert before - step_bytes(network, [], PREFIX)["layers"] == 4 * rows * columns - (rows * columns + 4 * rows)


def test_published_sizes():
    # Parameters of the released checkpoints: 60.5M, 222.9M and 737.7M.
    counts = {}
    for name in ("t5-small", "t5-base", "t5-large", "llama-150m", "llama-1b"):
        with torch.device("meta"):
            config = shapes.CONFIGS[name]
            kind = shapes.AutoModelForSeq2SeqLM if config.is_encoder_decoder else shapes.AutoModelForCausalLM
            network = kind.from_config(config)
            network.tie_weights()
        counts[name] = round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1)
    assert counts == {"t5-small": 60.5, "t5-base": 222.9, "t5-large": 737.7, "llama-150m": 145.7, "llama-1b": 1038.7}


def test_random_networks_hold_the_same_weights_in_every_dtype():
    config = build("t5").config
    wide, narrow = (shapes.random_network(config, dtype) for dtype in (torch.float32, torch.bfloat16))
    weights = [network.decoder.block[1].layer[0].SelfAttention.q.weight for network in (wide, narrow)]
    assert weights[1].dtype == torch.bfloat16
    assert torch.equal(weights[0], weights[1].float())
    assert not torch.equal(weights[0], wide.decoder.block[1].layer[0].SelfAttention.k.weight)
    assert wide.lm_head.weight is wide.shared.weight or not config.tie_word_embeddings
    assert torch.equal(wide.decoder.final_layer_norm.weight, torch.ones(config.d_model))
