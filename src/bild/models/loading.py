"""From a folder or a hub name to a network in memory, on the dtype and device that suit the machine."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from bild.errors import InputError, LoadError, one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

INT8 = "int8"
"""Weights of linear layers in eight bits; everything else in the dtype that ``auto`` means."""

REMEMBERED_BIASES = 256
TOKENIZER_FILES = ("tokenizer.json", "*.model", "*.spm", "vocab*", "tekken.json")


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to decode on; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        InputError: a device this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device is {str(device)!r}, which this machine does not have ({one_line(error)})") from None
    return resolved


def resolve_dtype(dtype: str | torch.dtype = "auto", device: torch.device | None = None) -> torch.dtype:
    """The number format of weights and activations.

    Args:
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or ``"auto"``: the fastest
            that is safe: bfloat16 where the GPU, or the CPU through AVX512_BF16 or AMX, multiplies
            it natively, else float16 on a GPU and float32 on a CPU. ``"int8"`` means the same:
            it is what activations, norms and embeddings keep.
        device: where it will run; the CPU by default.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype in ("auto", INT8):
        if device is not None and device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; allowed are auto, {', '.join(DTYPES)}, {INT8}")
    return DTYPES[dtype]


def _cpu_multiplies_bfloat16() -> bool:
    # Private in torch and renamed before; an older or newer one without them means float32, which is safe.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def load_network(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
    trust_remote_code: bool = False,
    config: PreTrainedConfig | None = None,
    trainable: bool = False,
) -> PreTrainedModel:
    """Load an encoder-decoder or decoder-only checkpoint with its language-model head.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        dtype: number format of the weights.
        device: where to put them.
        trust_remote_code: whether code that comes with the checkpoint may run.
        config: in place of the checkpoint's own, see :func:`load_config`.
        trainable: whether the weights will change; if not, what depends on them alone is computed once.

    Raises:
        LoadError: nothing there, an encoder-only model, or weights that are missing or damaged.
    """
    path = _existing(name)
    config = load_config(name, trust_remote_code=trust_remote_code) if config is None else config
    kind = _auto_class(config, name, trust_remote_code)
    network, report = _load(
        kind,
        path,
        name,
        config=config,
        dtype=dtype,
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report.get("mismatched_keys", ()))
    if missing:
        raise LoadError(f"{name}: {len(missing)} weights are missing or of another shape, the first is {missing[0]}")
    loaded: PreTrainedModel = network.to(device).eval()
    if not trainable:
        _remember_position_biases(loaded)
    return loaded


def load_config(name: str | os.PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a checkpoint, or of a folder that holds nothing else.

    Raises:
        LoadError: nothing there, or nothing that can be read.
    """
    config: PreTrainedConfig = _load(AutoConfig, _existing(name), name, trust_remote_code=trust_remote_code)
    return config


def new_network(config: PreTrainedConfig) -> PreTrainedModel:
    """A float32 network of this shape with random weights, from torch's generator.

    Raises:
        LoadError: a shape that does not generate text.
    """
    network: PreTrainedModel = _auto_class(config, config.model_type, False).from_config(config)
    return network.float()


def _remember_position_biases(network: PreTrainedModel) -> None:
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


def load_tokenizer(name: str | os.PathLike[str], *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer, or None for a folder without one (then only token ids can be decoded).

    Raises:
        LoadError: a tokenizer that cannot be read.
    """
    holds = Path(name).is_dir() and any(any(Path(name).glob(pattern)) for pattern in TOKENIZER_FILES)
    path = os.fspath(name) if holds else _existing(name)
    # transformers invents a tokenizer of special tokens for a folder that has none.
    if Path(path).is_dir() and not holds:
        return None
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, path, name, trust_remote_code=trust_remote_code)
    return tokenizer


def _existing(name: str | os.PathLike[str]) -> str:
    """A folder as it is; a hub name as it is; anything that looks like a missing path is refused."""
    text = os.fspath(name)
    if not text.strip():
        raise LoadError("the name of a checkpoint is empty; give a folder or a hub name")
    if Path(text).exists():
        if not Path(text).is_dir():
            raise LoadError(f"{text} is a file; give the folder of a checkpoint")
        if not (Path(text) / "config.json").is_file():
            raise LoadError(f"{text} holds no config.json; give the folder of a checkpoint")
        return text
    if text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise LoadError(f"no such folder: {text}")
    return text


def _auto_class(config: PreTrainedConfig, name: object, trust_remote_code: bool) -> type[Any]:
    if config.is_encoder_decoder and config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForSeq2SeqLM
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or trust_remote_code
    # BERT and its kin can be turned into decoders, and say so in their config.
    encoder_only = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if not causal or encoder_only:
        raise LoadError(
            f"{name}: a {config.model_type} model does not generate text; "
            "use an encoder-decoder (T5, BART, Marian…) or decoder-only (GPT-2, Llama, Qwen…) checkpoint"
        )
    return AutoModelForCausalLM


def _load(kind: Any, path: str, name: object, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        if not Path(path).exists():
            raise LoadError(
                f"{name}: no such folder here, and not to be had from the hub ({one_line(error)})"
            ) from error
        raise LoadError(f"{name}: cannot be loaded ({one_line(error)})") from error
