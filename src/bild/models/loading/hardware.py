"""The device and the number format that suit the machine, and whether the weights fit into its memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from bild.errors import InputError, LoadError, one_line
from bild.models.instructions import has_instructions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

INT8, INT4 = "int8", "int4"
ROUNDED = (INT8, INT4)
"""Weights of linear layers in eight bits or in four; everything else in the dtype that ``auto`` means."""

GB = 1e9


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
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device is {str(device)!r}, which this machine does not have ({one_line(error)})") from None
    return resolved


def resolve_dtype(dtype: str | torch.dtype = "auto", device: torch.device | None = None) -> torch.dtype:
    """The number format of weights and activations.

    Args:
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"`` or ``"auto"``: the fastest
            that is safe: bfloat16 where the GPU, or the CPU through AVX512_BF16 or AMX, multiplies
            it natively, else float16 on a GPU and float32 on a CPU. ``"int8"`` and ``"int4"`` mean the
            same: it is what activations, norms and embeddings keep.
        device: where it will run; the CPU by default.

    Raises:
        InputError: an unknown name.
    """
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype in ("auto", *ROUNDED):
        if device is not None and device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; allowed are auto, {', '.join((*DTYPES, *ROUNDED))}")
    return DTYPES[dtype]


def _cpu_multiplies_bfloat16() -> bool:
    return has_instructions("avx512_bf16") or has_instructions("amx_tile")


def check_memory(needed: Iterable[tuple[str, int]], device: torch.device) -> None:
    """Whether the weights of all these models fit on one device, before any of them is read.

    Args:
        needed: name and bytes of each model's weights.
        device: where they will be.

    Raises:
        LoadError: they do not.
    """
    sizes, available = dict(needed), memory_of(device)
    total = sum(sizes.values())
    if available is not None and total > available:
        each = " and ".join(f"{name} needs {size / GB:,.1f} GB" for name, size in sizes.items())
        raise LoadError(
            f"{each} for its weights, and {device} has {available / GB:,.1f} GB; bild keeps a pair on one device: "
            "use a device with more memory, dtype='bfloat16', or smaller checkpoints"
        )


def memory_of(device: torch.device) -> int | None:
    """Bytes a device can give to weights, None where that is not known.

    Of a GPU what is free, with what torch holds in reserve; of the machine all of it, because what other
    programs use may be swapped out.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def bytes_of_weights(kind: Any, config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> int:
    """What a network of this configuration takes, without making one."""
    with torch.device("meta"):
        network: nn.Module = kind.from_config(config, trust_remote_code=trust_remote_code)
    return sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize
