"""Products of the same states, made one: queries, keys and values; both inputs of a gated feed-forward layer.

A small layer's product takes as long as calling it, and rounding its states to int8, which are then done once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from bild.models.kernels.int8 import UNIT
from bild.models.kernels.operators import ATTENTION, FLOAT_LINEAR, INT4_LINEAR, LINEAR, call, operator

_THEIRS = {
    getattr(torch.ops.aten, name)
    for name in ("linear", "matmul", "mm", "addmm", "bmm", "baddbmm", "_weight_int8pack_mm", "_int_mm")
} | {torch.ops.aten.scaled_dot_product_attention}
MOST = 3
"""Products made one. The keys and values of a source in all decoder layers are more, and leave the graph one by one."""


def has_all_products(graph: Graph) -> bool:
    """Whether our kernels make all products of an exported graph that has some."""
    ours = {operator(name) for name in (LINEAR, INT4_LINEAR, FLOAT_LINEAR, ATTENTION)} - {None}
    made = {node.target for node in graph.nodes}
    return bool(made & ours) and not any(getattr(target, "overloadpacket", None) in _THEIRS for target in made)


def join_products(graph: Graph) -> int:
    """Replace our products of the same states, in an exported graph, by one product and its parts.

    Returns:
        How many products there are less.
    """
    groups: dict[Any, list[Any]] = {}
    ours = [operator(name) for name in (LINEAR, INT4_LINEAR, FLOAT_LINEAR) if operator(name) is not None]
    for node in graph.nodes:
        if node.target in ours and _can_be_joined(node):
            # States, whether there is a bias, threads.
            groups.setdefault((node.target, node.args[0], node.args[-3] is None, node.args[-1]), []).append(node)
    joined = [group for group in groups.values() if 1 < len(group) <= MOST]
    for group in joined:
        _join(graph, group)
    return sum(len(group) - 1 for group in joined)


def _can_be_joined(node: Any) -> bool:
    # Whole units, so that packed weights can stand behind each other; constants, so that they are packed but once.
    weights = [each for each in node.args[1:-2] if each is not None]
    return node.args[-2] % UNIT == 0 and all(map(_is_constant, weights))


def _is_constant(node: Any) -> bool:
    """Whether a value is made of weights alone."""
    if not isinstance(node, Node) or node.op == "placeholder":
        return isinstance(node, Node)
    return bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes))


def _join(graph: Graph, group: list[Any]) -> None:
    """The first of the group makes all products; they are in its order, behind each other."""
    states, *_, threads = group[0].args
    outputs = [node.args[-2] for node in group]
    with graph.inserting_before(group[0]):
        places = range(1, len(group[0].args) - 2)
        weights = [_behind_each_other(graph, [node.args[place] for node in group]) for place in places]
        product = call(graph, group[0].target, (states, *weights, sum(outputs), threads))
        begin = 0
        for node, count in zip(group, outputs, strict=True):
            part = call(graph, torch.ops.aten.slice.Tensor, (product, -1, begin, begin + count))
            node.replace_all_uses_with(part)
            begin += count
    for node in group:
        graph.erase_node(node)


def _behind_each_other(graph: Graph, tensors: list[Any]) -> Node | None:
    return None if tensors[0] is None else call(graph, torch.ops.aten.cat.default, (tensors,))
