"""Attention over a row's keys and values: the operator, its reference, and its place in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional

from bild.models.kernels.operators import ATTENTION, DTYPES, call, operator

PART, WIDEST = 16, 256
"""Numbers of a head come in whole parts, up to the widest head."""
MASKS = (torch.bool, *DTYPES)
THEIRS = torch.ops.aten.scaled_dot_product_attention.default
"""Attention by torch."""


class Shaped(Protocol):
    """What keys or values are like."""

    @property
    def width(self) -> int:
        """Numbers of a head."""

    @property
    def dtype(self) -> torch.dtype:
        """Their number format."""

    @property
    def device(self) -> torch.device:
        """Where they are."""


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, places: Tensor | None = None
) -> Tensor:
    """As :func:`plain_attention`, by our kernel and all of torch's threads.

    Args:
        queries: ``[B, H, T, D]``, bfloat16 or float32.
        keys: ``[B, K, L, D]``; H is a multiple of K.
        values: likewise.
        mask: ``[B or 1, H or 1, T or 1, L]``: False, or below −10³⁰, where a query does not look; else it is added.
        scale: of the products.
        places: row of the keys and values that each row of the queries reads ``[B]``; None: they are in the same order.
    """
    product: Tensor = operator(ATTENTION)(queries, keys, values, places, mask, scale, torch.get_num_threads())
    return product


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The reference: ``softmax(queries · keysᵀ · scale + mask) · values``."""
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=queries.shape[1] != keys.shape[1]
    )


def are_supported(network: Any, shapes: Sequence[Shaped]) -> bool:
    """Whether all attention of a network over keys and values of these shapes is ours in a graph."""
    plain = network.config._attn_implementation == "sdpa" and operator(ATTENTION) is not None
    return plain and all(fits(each.width, each.dtype, each.device) for each in shapes)


def fits(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether heads of this width and number format can be attended to by our kernel."""
    return device.type == "cpu" and dtype in DTYPES and width % PART == 0 and 0 < width <= WIDEST


def replace_attention(graph: Graph) -> int:
    """Let our kernel compute the attention of an exported graph, where it can.

    Returns:
        How many places.
    """
    target = operator(ATTENTION)
    if target is None:
        return 0
    nodes = [node for node in graph.nodes if node.target is THEIRS]
    return sum(_replace(graph, node, target) for node in nodes)


def _replace(graph: Graph, node: Node, target: Any) -> bool:
    given = _arguments(node)
    queries, mask = given["query"], given["attn_mask"]
    value = queries.meta["val"]
    plain = given["dropout_p"] == 0 and not given["is_causal"]
    right_mask = mask is None or (mask.meta["val"].dtype in MASKS and mask.meta["val"].dim() == 4)
    if not (plain and right_mask and value.dim() == 4 and fits(value.shape[-1], value.dtype, value.device)):
        return False
    scale = value.shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    keys, values = _unrepeated(given["key"]), _unrepeated(given["value"])
    places = None
    if keys.target is values.target is torch.ops.aten.index_select.default and keys.args[1:] == values.args[1:]:
        keys, values, places = keys.args[0], values.args[0], keys.args[2]
    arguments = (queries, keys, values, places, mask, float(scale), torch.get_num_threads())
    with graph.inserting_before(node):
        node.replace_all_uses_with(call(graph, target, arguments))
    graph.erase_node(node)
    return True


def _arguments(node: Node) -> dict[str, Any]:
    """All arguments of the call by name, defaults included."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _unrepeated(node: Any) -> Any:
    """Keys or values before they were repeated for every head of queries, as the networks of transformers do it."""
    aten = torch.ops.aten
    if node.target not in (aten.reshape.default, aten.view.default):
        return node
    repeated = node.args[0]
    if repeated.target is not aten.expand.default or repeated.meta["val"].dim() != 5:
        return node
    origin = repeated.args[0]
    while origin.target in (aten.unsqueeze.default, aten.slice.Tensor) and origin.meta["val"].dim() == 5:
        origin = origin.args[0]
    found, result = origin.meta["val"], node.meta["val"]
    alike = found.dim() == 4 and found.shape[0] == result.shape[0] and found.shape[2:] == result.shape[2:]
    by_head = repeated.meta["val"].shape[1:2] == found.shape[1:2] and result.shape[1] % found.shape[1] == 0
    return origin if alike and by_head else node
