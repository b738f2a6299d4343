"""The kernels as a library: what this processor can run of them, and whether they could be compiled."""

from __future__ import annotations

import logging
import platform
import sys
from functools import cache
from pathlib import Path

from bild.models.instructions import has_instructions
from bild.models.native import Library

AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma")
AVX512_BF16 = (*AVX512, "-mavx512bf16")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX_VNNI = (*AVX2, "-mavxvnni")
"""What the compiler may use: vectors.h is written in each."""


def has_wide_vectors() -> bool:
    """Whether the kernels are those of AVX512-VNNI, and not of AVX2."""
    return has_instructions("avx512", "vnni")


def has_vnni() -> bool:
    """Whether one instruction of the kernels adds up four products of bytes."""
    return has_wide_vectors() or has_instructions("avx2", "avx_vnni")


def instructions() -> tuple[str, ...]:
    """What the compiler may use on this processor."""
    if has_wide_vectors():
        return AVX512_BF16 if has_instructions("avx512_bf16") else AVX512
    return AVX_VNNI if has_vnni() else AVX2


def is_supported() -> bool:
    """Whether this processor has the instructions of the kernels."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and has_instructions("avx2")


KERNELS = Library(
    "kernels",
    [
        Path(__file__).with_name(f"{name}.cpp")
        for name in (
            "activation",
            "attention",
            "float_linear",
            "int4_linear",
            "int4_pack",
            "int8_linear",
            "int8_order",
            "summary",
            "threads",
        )
    ],
    [
        Path(__file__).with_name(f"{name}.h")
        for name in ("amx", "common", "int4", "int8", "rounding", "tiles", "vectors")
    ],
    ("-O3", *instructions()),
    operator="bild_int8_linear",
)


@cache
def is_loaded() -> bool:
    """Whether the kernels can be called; compiles and loads them the first time, and says why where it cannot."""
    return is_supported() and KERNELS.can_load(logging.WARNING, "torch's own kernels are used: bild's")


def digest() -> str:
    """A name for the kernels as they are compiled here."""
    return KERNELS.digest
