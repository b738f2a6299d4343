"""Activations of feed-forward layers: the operator, its reference, and its place in a graph.

What Inductor makes of them calls torch's function for e^x, 16 numbers at a time: a twelfth of a step of a batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional

from bild.models.kernels.operators import ACTIVATION, DTYPES, FLOAT_LINEAR, INT4_LINEAR, LINEAR, call, operator

GELU, SILU = 0, 1
"""Which activation: GELU's approximation by a hyperbolic tangent, or SiLU."""
CUBIC = 0.044715
"""Of the approximation of GELU (Hendrycks and Gimpel, arXiv 1606.08415)."""
aten: Any = torch.ops.aten


class Found(NamedTuple):
    """An activation in a graph."""

    states: Any
    """What is activated."""
    kind: int
    last: Any
    """The node that holds the result."""


def activation(states: Tensor, first: int, factor: int, width: int, kind: int) -> Tensor:
    """As :func:`plain_activation`, by our kernel and all of torch's threads.

    Args:
        states: ``[…, W]``, bfloat16 or float32.
        first: the first column of what is activated.
        factor: the first column of what that is multiplied by; negative: of nothing.
        width: columns of either.
        kind: :data:`GELU` or :data:`SILU`.
    """
    found: Tensor = operator(ACTIVATION)(states, first, factor, width, kind, torch.get_num_threads())
    return found


def plain_activation(states: Tensor, first: int, factor: int, width: int, kind: int) -> Tensor:
    """The reference."""
    gate = states[..., first : first + width]
    active = functional.silu(gate) if kind == SILU else functional.gelu(gate, approximate="tanh")
    return active if factor < 0 else active * states[..., factor : factor + width]


def replace_activations(graph: Graph) -> int:
    """Let our kernel compute the activations of what our products make, in an exported graph; together with the factor
    where that comes from the same product.

    Returns:
        How many.
    """
    target = operator(ACTIVATION)
    if target is None:
        return 0
    found = [each for node in graph.nodes if (each := _found(node)) is not None]
    return sum(_replace(graph, each, target) for each in found)


def _replace(graph: Graph, found: Found, target: Any) -> bool:
    part = _part(found.states)
    if part is None:
        return False
    product, first = part
    value, last, factor = found.states.meta["val"], found.last, -1
    users = list(last.users)
    if len(users) == 1 and users[0].target is aten.mul.Tensor:
        other: Any = next((each for each in users[0].args if each is not last), None)
        beside = _part(other)
        if beside is not None and beside[0] is product and other.meta["val"].shape[-1] == value.shape[-1]:
            last, factor = users[0], beside[1]
    arguments = (product, first, factor, value.shape[-1], found.kind, torch.get_num_threads())
    with graph.inserting_before(last):
        last.replace_all_uses_with(call(graph, target, arguments))
    return True


def _part(node: Any) -> tuple[Node, int] | None:
    """The product of ours that a node is, or is columns of, and the first of them."""
    value = node.meta["val"] if isinstance(node, Node) else None
    if not isinstance(value, Tensor) or value.dtype not in DTYPES:
        return None
    first = 0
    if node.target is aten.slice.Tensor and len(node.args) == 4 and node.args[1] in (-1, value.dim() - 1):
        node, first = node.args[0], node.args[2]
    ours = [operator(name) for name in (LINEAR, INT4_LINEAR, FLOAT_LINEAR)]
    return (node, first) if node.target in ours else None


def _found(node: Node) -> Found | None:
    if node.target is aten.silu.default:
        return Found(node.args[0], SILU, node)
    if node.target is aten.gelu.default and node.kwargs.get("approximate") == "tanh":
        return Found(node.args[0], GELU, node)
    if node.target is aten.tanh.default:
        return _written_out(node)
    return None


def _written_out(tanh: Any) -> Found | None:
    """GELU as transformers writes it out: ``0.5 x (1 + tanh(√(2 / π) (x + 0.044715 x³)))``."""
    inner = _scaled(tanh.args[0], math.sqrt(2 / math.pi))
    if inner is None or inner.target is not aten.add.Tensor or inner.kwargs:
        return None
    states, cube = inner.args[0], _scaled(inner.args[1], CUBIC)
    if cube is None or cube.target is not aten.pow.Tensor_Scalar or cube.args != (states, 3.0):
        return None
    raised = _only_user(tanh)
    if raised is None or raised.target is not aten.add.Tensor or raised.args[1] != 1.0:
        return None
    last = _only_user(raised)
    if last is None or last.target is not aten.mul.Tensor or _scaled(last.args[0], 0.5) is not states:
        return None
    return Found(states, GELU, last)


def _scaled(node: Any, factor: float) -> Any:
    """What a node multiplies by this factor; None if it does not."""
    if not isinstance(node, Node) or node.target is not aten.mul.Tensor or node.args[1] != factor:
        return None
    return node.args[0]


def _only_user(node: Any) -> Any:
    users = list(node.users)
    return users[0] if len(users) == 1 else None
