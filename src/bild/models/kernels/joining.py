"""Products of the same states, made one: queries, keys and values; both inputs of a gated feed-forward layer.

A small layer's product takes as long as calling it, and rounding its states to int8, which are then done once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from bild.models.kernels.linear import UNIT
from bild.models.kernels.operators import LINEAR, operator

MOST = 3
"""Products made one. The keys and values of a source in all decoder layers are more, and leave the graph one by one."""


def join_products(graph: Graph) -> int:
    """Replace our int8 products of the same states, in an exported graph, by one product and its parts.

    Returns:
        How many products there are less.
    """
    groups: dict[Any, list[Any]] = {}
    for node in graph.nodes:
        if operator(LINEAR) is not None and node.target is operator(LINEAR) and _can_be_joined(node):
            groups.setdefault((node.args[0], node.args[3] is None, node.args[5]), []).append(node)
    joined = [group for group in groups.values() if 1 < len(group) <= MOST]
    for group in joined:
        _join(graph, group)
    return sum(len(group) - 1 for group in joined)


def _can_be_joined(node: Any) -> bool:
    # Whole units, so that packed weights can stand behind each other; constants, so that they are packed but once.
    weights = [each for each in node.args[1:4] if each is not None]
    return node.args[4] % UNIT == 0 and all(isinstance(each, Node) and each.op == "placeholder" for each in weights)


def _join(graph: Graph, group: list[Any]) -> None:
    """The first of the group makes all products; they are in its order, behind each other."""
    states, *_, threads = group[0].args
    outputs = [node.args[4] for node in group]
    with graph.inserting_before(group[0]):
        weights = [_behind_each_other(graph, [node.args[i] for node in group]) for i in (1, 2, 3)]
        product = _call(graph, operator(LINEAR), (states, *weights, sum(outputs), threads))
        begin = 0
        for node, count in zip(group, outputs, strict=True):
            part = _call(graph, torch.ops.aten.slice.Tensor, (product, -1, begin, begin + count))
            node.replace_all_uses_with(part)
            begin += count
    for node in group:
        graph.erase_node(node)


def _behind_each_other(graph: Graph, tensors: list[Any]) -> Node | None:
    return None if tensors[0] is None else _call(graph, torch.ops.aten.cat.default, (tensors,))


def _call(graph: Graph, target: Any, arguments: Any) -> Node:
    node = graph.call_function(target, arguments)
    values = torch.fx.node.map_arg(arguments, lambda each: each.meta["val"])
    node.meta["val"] = target(*values)
    return node
