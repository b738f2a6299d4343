"""The kernels as a library: whether this processor can run them, and whether they could be compiled."""

from __future__ import annotations

import logging
import platform
import sys
from functools import cache
from pathlib import Path

from bild.models.instructions import has_instructions
from bild.models.native import Library

KERNELS = Library(
    "kernels",
    [
        Path(__file__).with_name(f"{name}.cpp")
        for name in ("attention", "bf16_linear", "int4_linear", "int4_pack", "int8_linear", "threads")
    ],
    [Path(__file__).with_name(f"{name}.h") for name in ("common", "int4", "rounding", "tiles")],
    ("-O3", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma"),
    operator="bild_int8_linear",
)


def is_supported() -> bool:
    """Whether this processor has the instructions of the kernels."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and has_instructions("avx512", "vnni")


@cache
def is_loaded() -> bool:
    """Whether the kernels can be called; compiles and loads them the first time, and says why where it cannot."""
    return is_supported() and KERNELS.can_load(logging.WARNING, "torch's own kernels are used: bild's")


def digest() -> str:
    """A name for the kernels as they are compiled here."""
    return KERNELS.digest
