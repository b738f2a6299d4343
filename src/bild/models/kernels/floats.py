"""A linear layer on weights in bfloat16 or float32: how they are packed, what it computes, and its place in a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional

from bild.models.instructions import has_instructions
from bild.models.kernels import building
from bild.models.kernels.choosing import LARGEST, is_faster
from bild.models.kernels.operators import FLOAT_LINEAR, call, operator

UNIT = 32
"""Outputs that are packed together."""
PER_STEP = {torch.bfloat16: 2, torch.float32: 1}
"""Inputs that are multiplied at once, by number format."""


def is_supported(dtype: torch.dtype) -> bool:
    """Whether there is a kernel for this processor and number format.

    One with AVX512 has to multiply bfloat16 by itself, AVX2 widens it.
    """
    if dtype == torch.bfloat16 and building.has_wide_vectors():
        return has_instructions("avx512_bf16")
    return dtype in PER_STEP and building.is_supported()


def float_linear(states: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """``states @ weightᵀ + bias``, summed in float32, by all of torch's threads.

    Args:
        states: ``[…, in]`` in bfloat16 or float32, its last dimension dense.
        packed: the weight, of :func:`pack`.
        bias: ``[out]``, of the same number format.
        outputs: how many there are before padding.
    """
    product: Tensor = operator(FLOAT_LINEAR)(states, packed, bias, outputs, torch.get_num_threads())
    return product


def pack(weight: Tensor) -> Tensor:
    """A weight ``[out, in]`` in the kernel's order, ``[⌈out / 32⌉, in / 2, 32, 2]``, or ``[⌈out / 32⌉, in, 32, 1]``."""
    outputs, inputs = weight.shape
    padded = functional.pad(weight, (0, 0, 0, -outputs % UNIT))
    together = PER_STEP[weight.dtype]
    return padded.view(-1, UNIT, inputs // together, together).transpose(1, 2).contiguous()


def replace_linears(graph: Graph) -> int:
    """Let our kernel compute the linear layers of an exported graph, where it can and is faster.

    The weights are packed by the graph itself, of constants, so the compiler does it.

    Returns:
        How many layers.
    """
    if operator(FLOAT_LINEAR) is None:
        return 0
    nodes = [node for node in graph.nodes if node.target is torch.ops.aten.linear.default]
    return sum(_replace(graph, node) for node in nodes)


def _replace(graph: Graph, node: Node) -> bool:
    states, weight, bias, *_ = (*node.args, None)
    if not _fits(states, weight, bias):
        return False
    value = weight.meta["val"]  # type: ignore[union-attr]
    outputs, inputs = map(int, value.shape)
    if not _is_faster(outputs, inputs, value.dtype):
        return False
    together = PER_STEP[value.dtype]
    aten = torch.ops.aten
    # Before all else, so that products can be made one wherever they stand.
    first = next(each for each in graph.nodes if each.op != "placeholder")
    with graph.inserting_before(first):
        padded = weight
        if outputs % UNIT:
            padded = call(graph, aten.constant_pad_nd.default, (weight, [0, 0, 0, -outputs % UNIT]))
        pairs = call(graph, aten.view.default, (padded, [-1, UNIT, inputs // together, together]))
        moved = call(graph, aten.permute.default, (pairs, [0, 2, 1, 3]))
        packed = call(graph, aten.clone.default, (moved,), {"memory_format": torch.contiguous_format})
    with graph.inserting_before(node):
        arguments = (states, packed, bias, outputs, torch.get_num_threads())
        node.replace_all_uses_with(call(graph, operator(FLOAT_LINEAR), arguments))
    graph.erase_node(node)
    return True


def _fits(states: Any, weight: Any, bias: Any) -> bool:
    constants = all(each is None or each.op == "placeholder" for each in (weight, bias))
    values = [each.meta["val"] for each in (states, weight, bias) if each is not None]
    dtype = values[1].dtype
    plain = all(each.dtype == dtype and each.device.type == "cpu" for each in values)
    matrix = values[1].dim() == 2 and is_supported(dtype) and values[1].shape[1] % PER_STEP[dtype] == 0
    return constants and plain and matrix


def _is_faster(outputs: int, inputs: int, dtype: torch.dtype) -> bool:
    weight = torch.randn(min(outputs, LARGEST), inputs, dtype=dtype)
    packed = pack(weight)
    return is_faster(
        f"{inputs}->{outputs} {str(dtype).removeprefix('torch.')}",
        ours=lambda states: float_linear(states, packed, None, len(weight)),
        theirs=lambda states: functional.linear(states, weight),
        plain=lambda states: functional.linear(states.double(), weight.double()),
        inputs=inputs,
        dtype=dtype,
    )
