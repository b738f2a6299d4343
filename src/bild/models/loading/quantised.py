"""Checkpoints whose weights are quantised (bitsandbytes, GPTQ, AWQ, FP8, …): loaded where transformers can."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

from bild.errors import LoadError, one_line


def method_of(config: PreTrainedConfig) -> str | None:
    """How the weights of a checkpoint are quantised, None if they are not."""
    note = _note(config)
    if note is None:
        return None
    if note.get("load_in_4bit") or note.get("load_in_8bit"):
        return "bitsandbytes_4bit" if note.get("load_in_4bit") else "bitsandbytes_8bit"
    method = note.get("quant_method")
    return "unknown" if method is None else str(getattr(method, "value", method))


def check_quantised(config: PreTrainedConfig, name: object, device: torch.device) -> None:
    """Whether transformers can load quantised weights here; of others nothing is asked.

    Raises:
        LoadError: it cannot, and why.
    """
    note, method = _note(config), method_of(config)
    if note is None or method is None:
        return
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise _refusal(name, method, device, "transformers does not know this method")
    if importlib.util.find_spec("accelerate") is None:
        raise _refusal(name, method, device, "it needs the package accelerate; run pip install accelerate")
    try:
        quantizer = AutoHfQuantizer.from_config(note, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # each method checks in its own way for its packages and hardware
        raise _refusal(name, method, device, one_line(error)) from error


def _refusal(name: object, method: str, device: torch.device, why: str) -> LoadError:
    return LoadError(
        f"{name}: its weights are quantised ({method}), which cannot be loaded on {device} here ({why}); "
        "use the checkpoint without quantisation, and dtype='int8' if memory is short"
    )


def _note(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The ``quantization_config`` of a configuration or of its text part."""
    for each in (config, config.get_text_config(decoder=True)):
        note = getattr(each, "quantization_config", None)
        if note is not None:
            return dict(note if isinstance(note, dict) else note.to_dict())
    return None
