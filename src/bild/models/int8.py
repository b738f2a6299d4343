"""Linear layers in eight bits: half the bytes a step must read, where reading them is what takes the time.

Weights have one scale an output channel, symmetric, rounded to nearest; embeddings, norms and everything
between layers stay as they are. Where the CPU multiplies int8 (AMX, VNNI, AVX2) and our own kernel is the faster, each
token that enters a layer is rounded to int8 as well, some of its numbers on a scale of their own, so that rows and
tokens stay independent of each other and no weight is ever widened; AVX2 alone leaves weights seven bits. Elsewhere
only the weights are int8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bild.errors import LoadError
from bild.models import kernels

MULTIPLE = 32
"""Input widths the int8 kernels take: whole vectors."""
MOST = 127
"""The largest weight, but for kernels that take less."""


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8 with one scale an output.

    Args:
        weight: of the layer it replaces ``[out, in]``.
        bias: of that layer ``[out]``, or None.
        own_kernel: whether it runs on :mod:`bild.models.kernels`, whose weights are packed; "measured" where that is
            faster on this machine.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, own_kernel: bool | Literal["measured"] = False) -> None:
        super().__init__()
        most = kernels.MOST if own_kernel else MOST
        rounded, scale = quantize_rows(weight, most)
        self.out_features, self.in_features = weight.shape
        self.is_packed = _is_ours_faster(rounded, scale) if own_kernel == "measured" else own_kernel
        if not self.is_packed and most < MOST:
            rounded, scale = quantize_rows(weight)
        self.register_buffer("weight", kernels.pack(rounded) if self.is_packed else rounded)
        self.register_buffer("scale", kernels.pad_scale(scale) if self.is_packed else scale)
        self.register_buffer("bias", bias)

    def forward(self, states: Tensor) -> Tensor:
        """``states @ (weight · scale)ᵀ + bias``, ``[…, in] -> […, out]``."""
        if self.is_packed and states.device.type == "cpu":
            # In float32 unless somebody has converted the network since; that it need not be converted is not exported.
            scale = self.scale if self.scale.dtype == torch.float32 else self.scale.float()
            return kernels.int8_linear(states, self.weight, scale, self.bias, self.out_features)
        weight, scale = self._unpacked(states.dtype) if self.is_packed else (self.weight, self.scale)
        product: Tensor = torch.ops.aten._weight_int8pack_mm(states.reshape(-1, self.in_features), weight, scale)
        product = product.view(*states.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias

    def _unpacked(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """For a device that the packed weights were not meant for."""
        return kernels.unpack(self.weight, self.out_features), self.scale[: self.out_features].to(dtype)


def _is_ours_faster(rounded: Tensor, scale: Tensor) -> bool:
    return kernels.is_faster_here(rounded, scale, torch.ops.aten._weight_int8pack_mm)


def quantize_rows(matrix: Tensor, most: int = MOST) -> tuple[Tensor, Tensor]:
    """A matrix ``[rows, in]`` as int8 and a scale ``[rows]`` in its own dtype: scale = max |row| / ``most``."""
    wide = matrix.detach().float().contiguous()
    # Divided by what is stored, so that rounding the scale costs nothing.
    scale = (wide.abs().amax(1) / most).clamp_min(torch.finfo(torch.float32).tiny).to(matrix.dtype)
    rounded = (wide / scale.float()[:, None]).round().clamp(-most, most)
    return rounded.to(torch.int8), scale


@torch.no_grad()
def to_int8(network: PreTrainedModel) -> PreTrainedModel:
    """Replace every linear layer of a network, its head included, by int8 ones, in place.

    Layers of an input width that the kernels do not take stay as they are.

    Raises:
        LoadError: no layer of the network can be replaced.
    """

    def replacement(_: nn.Module, child: Any, weight: Tensor) -> nn.Module:
        return Int8Linear(weight, child.bias, own_kernel="measured")

    return replace_layers(network, replacement, "int8")


def replace_layers(
    network: PreTrainedModel, replacement: Callable[[nn.Module, Any, Tensor], nn.Module], name: str
) -> PreTrainedModel:
    """Replace the linear layers of a network that kernels on rounded weights take, in place.

    Args:
        network: with linear layers.
        replacement: of what holds a layer, the layer, and its weight ``[out, in]``.
        name: of the number format, for the message.

    Raises:
        LoadError: it has none.
    """
    replaced = 0
    for module in list(network.modules()):
        for place, child in list(module.named_children()):
            weight = _weight_of(child)
            if weight is not None and weight.shape[1] % MULTIPLE == 0:
                setattr(module, place, replacement(module, child, weight))
                replaced += 1
    if not replaced:
        raise LoadError(
            f"{type(network).__name__} has no linear layer that {name} can hold (input width a multiple of "
            f"{MULTIPLE}); use dtype bfloat16 or float32"
        )
    return network


def _weight_of(module: nn.Module) -> Tensor | None:
    """The weight ``[out, in]`` of a plain linear layer, None of anything else."""
    if type(module) is nn.Linear:
        return module.weight
    return module.weight.t() if type(module) is Conv1D else None
