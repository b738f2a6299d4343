"""Weights in eight bits: half the bytes a step must read, where reading them is what takes the time.

One scale a output channel, symmetric, rounded to nearest; activations, embeddings and norms stay as they
are. Inductor multiplies such weights without unpacking them to memory first (``_weight_int8pack_mm``).
torchao's int8 tensors were tried: frozen into a graph they are unpacked to bfloat16 again, and with dynamic
activations they cannot be traced with a varying number of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bild.errors import LoadError

MULTIPLE = 32
"""Input widths the int8 kernels take: whole vectors."""


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8 with one scale an output.

    Args:
        weight: of the layer it replaces ``[out, in]``.
        bias: of that layer ``[out]``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        rounded, scale = quantize_rows(weight)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape

    def forward(self, states: Tensor) -> Tensor:
        """``states @ (weight · scale)ᵀ + bias``, ``[…, in] -> […, out]``."""
        flat = states.reshape(-1, self.in_features)
        product = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale)
        product = product.view(*states.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` ``[out, in]`` as int8 and a scale ``[out]`` in its own dtype: scale = max |row| / 127."""
    wide = weight.detach().float().contiguous()
    # Divided by what is stored, so that rounding the scale costs nothing.
    scale = (wide.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny).to(weight.dtype)
    rounded = (wide / scale.float()[:, None]).round().clamp(-127, 127)
    return rounded.to(torch.int8), scale


@torch.no_grad()
def to_int8(network: PreTrainedModel) -> PreTrainedModel:
    """Replace every linear layer of a network, its head included, by int8 ones, in place.

    Layers of an input width that the kernels do not take stay as they are.

    Raises:
        LoadError: no layer of the network can be replaced.
    """
    replaced = 0
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            weight = _weight_of(child)
            if weight is not None and weight.shape[1] % MULTIPLE == 0:
                setattr(module, name, Int8Linear(weight, child.bias))
                replaced += 1
    if not replaced:
        raise LoadError(
            f"{type(network).__name__} has no linear layer that int8 can hold (input width a multiple of {MULTIPLE}); "
            "use dtype bfloat16 or float32"
        )
    return network


def _weight_of(module: nn.Module) -> Tensor | None:
    """The weight ``[out, in]`` of a plain linear layer, None of anything else."""
    if type(module) is nn.Linear:
        return module.weight
    return module.weight.t() if type(module) is Conv1D else None
