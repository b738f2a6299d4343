"""What this machine's processor can do, as far as torch says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch


def has_instructions(*names: str) -> bool:
    """Whether the processor has all of these: ``"avx2"``, ``"avx_vnni"``, ``"avx512"``, ``"vnni"`` (that of AVX512),
    ``"avx512_bf16"``, ``"amx_tile"``.

    What ``ATEN_CPU_CAPABILITY`` keeps torch from using is not there: ``avx2`` makes any machine one without AVX512.
    """
    level = os.environ.get("ATEN_CPU_CAPABILITY")
    if level in ("default", "avx2") and any(name != level for name in names):
        return False
    return all(map(_has, names))


def _has(name: str) -> bool:
    # Private in torch, and renamed before: one that does not say has none, which is slower and safe.
    asked = getattr(torch.cpu, f"_is_{name}_supported", None)
    listed: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(asked() if asked else listed.get(name))
