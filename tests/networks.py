"""Tiny random networks of every supported architecture, peaked enough that two of different seed disagree."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

VOCAB_SIZE = 40
POSITIONS = 64
DEVICE = os.environ.get("BILD_TEST_DEVICE", "cpu")
"""Where networks are built: a GPU, to run the contract suite there."""
PAD = START = 0
EOS = 1

ENCODER_DECODERS = ("t5", "mt5", "bart", "marian")
DECODERS_ONLY = ("gpt2", "llama", "qwen2", "mistral")
ARCHITECTURES = ENCODER_DECODERS + DECODERS_ONLY
BATCHING = ARCHITECTURES


def build(
    name: str,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 16,
    dtype: torch.dtype = torch.float64,
    vocab_size: int = VOCAB_SIZE,
    **overrides: Any,
) -> PreTrainedModel:
    """A random network of ``layers`` layers (T5 and mT5 decoders have one more than their encoders)."""
    kind, config, sizes = _PLANS[name](layers, width)
    tokens = {"vocab_size": vocab_size, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": EOS}
    network = kind(config(**(tokens | sizes | overrides)))
    _spread(network, torch.Generator().manual_seed(seed))
    return network.to(DEVICE, dtype).eval()


def build_other(model_type: str) -> PreTrainedModel:
    """A random float32 network of one of :data:`OTHERS`."""
    tokens = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": EOS}
    config = AutoConfig.for_model(model_type, **tokens, **OTHERS[model_type])
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    network = kind.from_config(config).float()
    _spread(network, torch.Generator().manual_seed(0))
    return network.eval()


@cache
def shared(name: str, seed: int = 0) -> PreTrainedModel:
    """A float64 network that is built once; nobody may change it."""
    return build(name, seed=seed)


def perturbed(network: PreTrainedModel, amount: float, seed: int = 0) -> PreTrainedModel:
    """A copy with noise of ``amount`` times each weight matrix's spread: agrees often, not always."""
    noisy = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in noisy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (amount * parameter.std(correction=0).cpu() * noise).to(parameter)
    return noisy


def forward(network: PreTrainedModel, source: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Next-token logits ``[T, V]`` after each token, computed without any cache."""
    ids = torch.tensor([list(tokens)], device=network.device)
    with torch.inference_mode():
        if network.config.is_encoder_decoder:
            inputs = {"input_ids": torch.tensor([list(source)], device=network.device), "decoder_input_ids": ids}
        else:
            inputs = {"input_ids": ids}
        return network(**inputs, use_cache=False).logits[0]


def word_tokenizer(words: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Word ``w7`` is id 7; ``words`` stand for the ids in order instead."""
    pieces = ["<pad>", "</s>", *(f"w{id}" for id in range(2, VOCAB_SIZE))] if words is None else words
    tokenizer = Tokenizer(WordLevel({piece: id for id, piece in enumerate(pieces)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def random_tokens(rng: Random, count: int, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Ordinary token ids, no padding and no end."""
    return [rng.randrange(2, vocab_size) for _ in range(count)]


def random_source(rng: Random, network: PreTrainedModel) -> list[int]:
    """An encoder input of 1 to 9 tokens; empty for a decoder-only network."""
    return random_tokens(rng, rng.randint(1, 9)) if network.config.is_encoder_decoder else []


def _t5(layers: int, width: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "d_kv": width // 2,
        "d_ff": 2 * width,
        "num_layers": layers,
        "num_decoder_layers": layers + 1,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "decoder_start_token_id": START,
    }


def _bart(layers: int, width: int) -> dict[str, Any]:
    per_side = {"layers": layers, "attention_heads": 2, "ffn_dim": 2 * width}
    return {
        "d_model": width,
        **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in per_side.items()},
        "max_position_embeddings": POSITIONS,
        "decoder_start_token_id": START,
        "forced_eos_token_id": EOS,
        "tie_word_embeddings": False,
    }


def _gpt2(layers: int, width: int) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": POSITIONS, "tie_word_embeddings": False}


def _llama(layers: int, width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": False,
    }


_PLANS = {
    "t5": lambda *size: (T5ForConditionalGeneration, T5Config, _t5(*size)),
    "mt5": lambda *size: (MT5ForConditionalGeneration, MT5Config, _t5(*size)),
    "bart": lambda *size: (BartForConditionalGeneration, BartConfig, _bart(*size)),
    "marian": lambda *size: (MarianMTModel, MarianConfig, _bart(*size)),
    "gpt2": lambda *size: (GPT2LMHeadModel, GPT2Config, _gpt2(*size)),
    "llama": lambda *size: (LlamaForCausalLM, LlamaConfig, _llama(*size)),
    "qwen2": lambda *size: (Qwen2ForCausalLM, Qwen2Config, _llama(*size)),
    "mistral": lambda *size: (MistralForCausalLM, MistralConfig, _llama(*size) | {"sliding_window": 4}),
}


_BERT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "is_decoder": True,
}
_LANGUAGES = {"src_vocab_size": VOCAB_SIZE, "tgt_vocab_size": VOCAB_SIZE, "langs": ["a", "b"]}
_EXPERTS = {"num_experts": 2, "num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0}
_PROPHETNET = {
    **{f"num_{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")},
    **{f"{side}_ffn_dim": 32 for side in ("encoder", "decoder")},
}

OTHERS: dict[str, dict[str, Any]] = {
    # Its attention adds the mask to the scores, where others choose by it.
    "umt5": _t5(1, 16) | {"attn_implementation": "eager"},
    "pegasus": _bart(2, 16),
    "pegasus_x": _bart(2, 16) | {"block_size": 2, "num_global_tokens": 2},
    "m2m_100": _bart(2, 16) | {"encoder_layers": 1},
    "opt": _BERT | {"word_embed_proj_dim": 16, "ffn_dim": 32},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True},
    "gpt_neox": _llama(2, 16),
    "gemma2": _llama(2, 16) | {"head_dim": 4, "sliding_window": 4},
    "bert": _BERT,
    "roberta": _BERT,
    "openai-gpt": _gpt2(2, 16),
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "fsmt": _bart(2, 16) | _LANGUAGES,
    # Makes its mask only where it reads several tokens.
    "led": _bart(2, 16)
    | {
        "attention_window": 4,
        "max_encoder_position_embeddings": POSITIONS,
        "max_decoder_position_embeddings": POSITIONS,
    },
    "prophetnet": {"hidden_size": 16, "max_position_embeddings": POSITIONS} | _PROPHETNET,
    "switch_transformers": _t5(2, 16) | _EXPERTS,
}


@torch.no_grad()
def _spread(network: PreTrainedModel, generator: torch.Generator) -> None:
    """Weights under which each token of the prefix moves later logits, and the likeliest token changes often."""
    head = network.get_output_embeddings()
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and "Sinusoidal" not in type(module).__name__:
            _normal(module.weight, 1.0, generator)
        elif isinstance(module, nn.Linear | Conv1D) and module is not head:
            fan_in = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
            _normal(module.weight, _gain(name) / math.sqrt(fan_in), generator)
            if module.bias is not None:
                _normal(module.bias, 0.3, generator)
    # T5's configuration insists on tied embeddings, and a random network that has them repeats its last token.
    head.weight = nn.Parameter(torch.empty_like(head.weight))
    scaled = getattr(network.config, "scale_decoder_outputs", False)
    _normal(head.weight, 4.0 if scaled else 4.0 / math.sqrt(head.weight.shape[1]), generator)


def _gain(name: str) -> float:
    """BART and Marian need sharp queries and quiet cross-attention, or they write one token for ever."""
    if name.endswith(("q_proj", "k_proj")):
        return 2.0
    return 0.5 if name.endswith("encoder_attn.out_proj") else 1.0


def _normal(weight: Tensor, std: float, generator: torch.Generator) -> None:
    weight.copy_(std * torch.randn(weight.shape, generator=generator))
