"""A linear layer on bfloat16 weights: how they are packed, what it computes, and its place in a compiled graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional

from bild.models.instructions import has_instructions
from bild.models.kernels.choosing import LARGEST, is_faster
from bild.models.kernels.operators import BF16_LINEAR, call, operator

UNIT = 32
"""Outputs that are packed together."""


def is_supported() -> bool:
    """Whether this processor multiplies bfloat16 by vectors."""
    return has_instructions("avx512_bf16")


def has_tiles() -> bool:
    """Whether it has tiles as well (AMX): on those Inductor's template reads eleven rows in little more than one."""
    return has_instructions("amx_tile")


def bf16_linear(states: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """``states @ weightᵀ + bias``, summed in float32, by all of torch's threads.

    Args:
        states: ``[…, in]`` in bfloat16, its last dimension dense.
        packed: the weight, of :func:`pack`.
        bias: ``[out]`` in bfloat16.
        outputs: how many there are before padding.
    """
    product: Tensor = operator(BF16_LINEAR)(states, packed, bias, outputs, torch.get_num_threads())
    return product


def pack(weight: Tensor) -> Tensor:
    """A weight ``[out, in]`` in the kernel's order, ``[⌈out / 32⌉, in / 2, 32, 2]``."""
    outputs, inputs = weight.shape
    padded = functional.pad(weight, (0, 0, 0, -outputs % UNIT))
    return padded.view(-1, UNIT, inputs // 2, 2).transpose(1, 2).contiguous()


def replace_linears(graph: Graph) -> int:
    """Let our kernel compute the linear layers of an exported graph, where it can and is faster.

    The weights are packed by the graph itself, of constants, so the compiler does it.

    Returns:
        How many layers.
    """
    if operator(BF16_LINEAR) is None or not is_supported() or has_tiles():
        return 0
    nodes = [node for node in graph.nodes if node.target is torch.ops.aten.linear.default]
    return sum(_replace(graph, node) for node in nodes)


def _replace(graph: Graph, node: Node) -> bool:
    states, weight, bias, *_ = (*node.args, None)
    if not _fits(states, weight, bias):
        return False
    outputs, inputs = weight.meta["val"].shape  # type: ignore[union-attr]
    if not _is_faster(int(outputs), int(inputs)):
        return False
    aten = torch.ops.aten
    # Before all else, so that products can be made one wherever they stand.
    first = next(each for each in graph.nodes if each.op != "placeholder")
    with graph.inserting_before(first):
        padded = weight
        if outputs % UNIT:
            padded = call(graph, aten.constant_pad_nd.default, (weight, [0, 0, 0, -outputs % UNIT]))
        pairs = call(graph, aten.view.default, (padded, [-1, UNIT, inputs // 2, 2]))
        moved = call(graph, aten.permute.default, (pairs, [0, 2, 1, 3]))
        packed = call(graph, aten.clone.default, (moved,), {"memory_format": torch.contiguous_format})
    with graph.inserting_before(node):
        arguments = (states, packed, bias, int(outputs), torch.get_num_threads())
        node.replace_all_uses_with(call(graph, operator(BF16_LINEAR), arguments))
    graph.erase_node(node)
    return True


def _fits(states: Any, weight: Any, bias: Any) -> bool:
    constants = all(each is None or each.op == "placeholder" for each in (weight, bias))
    values = [each.meta["val"] for each in (states, weight, bias) if each is not None]
    plain = all(each.dtype == torch.bfloat16 and each.device.type == "cpu" for each in values)
    return constants and plain and values[1].dim() == 2 and values[1].shape[1] % 2 == 0


def _is_faster(outputs: int, inputs: int) -> bool:
    weight = torch.randn(min(outputs, LARGEST), inputs, dtype=torch.bfloat16)
    packed = pack(weight)
    return is_faster(
        f"{inputs}->{outputs} bf16",
        ours=lambda states: bf16_linear(states, packed, None, len(weight)),
        theirs=lambda states: functional.linear(states, weight),
        plain=lambda states: functional.linear(states.double(), weight.double()),
        inputs=inputs,
        dtype=torch.bfloat16,
    )
