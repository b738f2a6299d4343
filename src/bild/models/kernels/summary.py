"""What matters most of next-token logits: the operator and its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from bild.models.kernels.operators import DTYPES, SUMMARY, operator


def can_sum_up(logits: Tensor) -> bool:
    """Whether :func:`summary` takes these."""
    return logits.device.type == "cpu" and logits.dtype in DTYPES and operator(SUMMARY) is not None


def summary(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`plain_summary`, by our kernel and all of torch's threads; see :func:`can_sum_up`."""
    found: tuple[Tensor, Tensor, Tensor] = operator(SUMMARY)(logits.contiguous(), torch.get_num_threads())
    return found


def plain_summary(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The reference: of logits ``[..., V]``, at least float32, the place of the highest one (the first of equals), its
    probability, and ``log Σ exp z``. The latter two are NaN where there is a NaN, or an infinity above all others."""
    highest = logits.amax(-1)
    total = (logits - highest[..., None]).exp().sum(-1)
    return logits.argmax(-1), 1 / total, highest + total.log()
