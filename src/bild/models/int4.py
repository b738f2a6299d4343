"""Linear layers in four bits: little more than half the bytes of int8, for models that memory has to be read for.

Of every 32 inputs of an output the weights are ``scale · q + minimum`` with q from 0 to 15, both kept as float16: five
bits a weight in all, the blocks of GGUF's Q4_1, and Q4_0's among them, which stay what they are. Tokens are rounded to
int8 as for weights in eight bits. The head stays in those, as llama.cpp has it: an error in a logit is the error of a
token, where one within a layer is averaged away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from bild.errors import InputError
from bild.models import kernels
from bild.models.int8 import Int8Linear, replace_layers
from bild.models.parts import head_of


class Int4Linear(nn.Module):
    """A linear layer whose weight is in four bits, on a kernel of :mod:`bild.models.kernels`.

    Args:
        weight: of the layer it replaces ``[out, in]``, in a multiple of 32.
        bias: of that layer ``[out]``, or None.
    """

    weight: Tensor
    bias: Tensor | None
    is_packed = True
    """As of :class:`~bild.models.int8.Int8Linear`: whether it runs on a kernel of our own."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", kernels.round_to_int4(weight))
        self.register_buffer("bias", bias)

    def forward(self, states: Tensor) -> Tensor:
        """``states @ weightᵀ + bias``, ``[…, in] -> […, out]``."""
        if states.device.type == "cpu":
            return kernels.int4_linear(states, self.weight, self.bias, self.out_features)
        # For a device that the packed weights were not meant for.
        weight = kernels.widen_int4(*kernels.unpack_int4(self.weight, self.out_features))
        return functional.linear(states, weight.to(states.dtype), self.bias)


@torch.no_grad()
def to_int4(network: PreTrainedModel) -> PreTrainedModel:
    """Replace every linear layer of a network by 4-bit ones, in place; its head by one of int8.

    Layers of an input width that the kernels do not take stay as they are.

    Raises:
        InputError: this machine does not have the kernel.
        LoadError: no layer of the network can be replaced.
    """
    check_int4()
    head = head_of(network)

    def replacement(parent: nn.Module, child: Any, weight: Tensor) -> nn.Module:
        # A shortened head holds its rows as a layer of its own.
        if head is not None and (child is head or parent is head):
            return Int8Linear(weight, child.bias, own_kernel="measured")
        return Int4Linear(weight, child.bias)

    return replace_layers(network, replacement, "int4")


def check_int4() -> None:
    """Whether this machine multiplies 4-bit weights.

    Raises:
        InputError: it does not.
    """
    if not kernels.has_int4():
        raise InputError(
            "dtype is int4, which needs a Linux machine whose processor has AVX2, and a C++ compiler; use dtype int8"
        )
