"""What this machine's processor can do, as far as torch says."""

from __future__ import annotations

import torch


def has_instructions(*names: str) -> bool:
    """Whether the processor has all of these: ``"avx512"``, ``"vnni"``, ``"avx512_bf16"``, ``"amx_tile"``."""
    # Private in torch, and renamed before: one that does not say has none, which is slower and safe.
    return all(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in names)
