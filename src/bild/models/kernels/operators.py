"""The kernels as torch operators: how they are looked up, what shapes they return, how compiled graphs call them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from bild.models.kernels import building

LINEAR, INT4_LINEAR, FLOAT_LINEAR = "bild_int8_linear", "bild_int4_linear", "bild_float_linear"
INT4_PACK, INT8_ORDER = "bild_int4_pack", "bild_int8_order"
ATTENTION, ACTIVATION, SUMMARY = "bild_attention", "bild_activation", "bild_summary"
DTYPES = (torch.float32, torch.bfloat16)
"""Number formats that the kernels take, but for those of weights and masks."""


def _linear_shape(
    states: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, outputs: int, threads: int
) -> Tensor:
    return states.new_empty((*states.shape[:-1], outputs))


def _packed_shape(states: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, threads: int) -> Tensor:
    return states.new_empty((*states.shape[:-1], outputs))


def _int4_pack_shape(weight: Tensor, threads: int) -> Tensor:
    outputs, inputs = weight.shape
    return weight.new_empty((-(-outputs // 32) * 32, inputs * 5 // 8), dtype=torch.int8)


def _int8_order_shape(weight: Tensor, threads: int) -> Tensor:
    outputs, inputs = weight.shape
    return weight.new_empty((outputs // 32, inputs // 4), dtype=torch.uint8)


def _attention_shape(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    places: Tensor | None,
    mask: Tensor | None,
    scale: float,
    threads: int,
) -> Tensor:
    rows, heads, tokens, width = queries.shape
    return queries.new_empty((rows, tokens, heads, width)).transpose(1, 2)


def _activation_shape(states: Tensor, first: int, factor: int, width: int, kind: int, threads: int) -> Tensor:
    return states.new_empty((*states.shape[:-1], width))


def _summary_shape(logits: Tensor, threads: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[:-1]
    numbers = [logits.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return logits.new_empty(rows, dtype=torch.long), *numbers  # type: ignore[return-value]


_SHAPES: dict[str, Callable[..., Any]] = {
    LINEAR: _linear_shape,
    INT4_LINEAR: _packed_shape,
    INT4_PACK: _int4_pack_shape,
    INT8_ORDER: _int8_order_shape,
    FLOAT_LINEAR: _packed_shape,
    ATTENTION: _attention_shape,
    ACTIVATION: _activation_shape,
    SUMMARY: _summary_shape,
}
_PACKED = "AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle* bias, int64_t outputs, int64_t threads"
_RESULT = "AtenTensorHandle* result"
_CALLS = {
    LINEAR: "AtenTensorHandle states, AtenTensorHandle weight, AtenTensorHandle scale, AtenTensorHandle* bias, "
    f"int64_t outputs, int64_t threads, {_RESULT}",
    INT4_LINEAR: f"{_PACKED}, {_RESULT}",
    FLOAT_LINEAR: f"{_PACKED}, {_RESULT}",
    ATTENTION: "AtenTensorHandle queries, AtenTensorHandle keys, AtenTensorHandle values, AtenTensorHandle* places, "
    f"AtenTensorHandle* mask, double scale, int64_t threads, {_RESULT}",
    ACTIVATION: "AtenTensorHandle states, int64_t first, int64_t factor, int64_t width, int64_t kind, int64_t threads, "
    f"{_RESULT}",
    SUMMARY: "AtenTensorHandle logits, int64_t threads, AtenTensorHandle* likeliest, AtenTensorHandle* probability, "
    "AtenTensorHandle* log_total",
}


@cache
def operator(name: str) -> Any:
    """``torch.ops.bild.NAME.default``, None on machines where the kernels cannot be had."""
    if not building.is_loaded():
        return None
    torch.library.register_fake(f"bild::{name}", _SHAPES[name])
    return getattr(torch.ops.bild, name).default


def call(graph: Graph, target: Any, arguments: Any, options: dict[str, Any] | None = None) -> Node:
    """A new node of an exported graph, with the shape of its value."""
    options = {} if options is None else options
    node = graph.call_function(target, arguments, options)
    values = torch.fx.node.map_arg(arguments, lambda each: each.meta["val"])
    node.meta["val"] = target(*values, **options)
    return node


def graph_calls() -> dict[Any, list[str]]:
    """How compiled graphs call the operators: by their names in the library, past torch's dispatcher."""
    return {
        operator(name): [f"AOTITorchError aoti_torch_cpu_{name}({arguments})"]
        for name, arguments in _CALLS.items()
        if operator(name) is not None
    }
