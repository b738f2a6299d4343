"""Between the host and the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host there, without waiting for what the device still has to do.

    Of memory that is not pinned, CUDA takes a copy before the call returns.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def to_host(*tensors: Tensor) -> list[Any]:
    """Tensors of one shape as lists, in one transfer: a GPU is waited for once.

    Token ids come back exact: as float32 they are up to 2^24, far above any vocabulary.
    """
    if tensors[0].device.type == "cpu":
        return [tensor.tolist() for tensor in tensors]
    dtype = torch.float64 if torch.float64 in [tensor.dtype for tensor in tensors] else torch.float32
    return list(torch.stack([tensor.to(dtype) for tensor in tensors]).tolist())
