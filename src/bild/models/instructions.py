"""What this machine's processor can do, as far as torch says."""

from __future__ import annotations

import os

import torch


def has_instructions(*names: str) -> bool:
    """Whether the processor has all of these: ``"avx2"``, ``"avx512"``, ``"vnni"``, ``"avx512_bf16"``, ``"amx_tile"``.

    What ``ATEN_CPU_CAPABILITY`` keeps torch from using is not there: ``avx2`` makes any machine one without AVX512.
    """
    level = os.environ.get("ATEN_CPU_CAPABILITY")
    if level in ("default", "avx2") and any(name != level for name in names):
        return False
    # Private in torch, and renamed before: one that does not say has none, which is slower and safe.
    return all(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in names)
