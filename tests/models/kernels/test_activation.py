"""Activations by our kernel: numbers against the reference, and where it takes its place in a graph."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from bild.models.int8 import Int8Linear
from bild.models.kernels import building, join_products, replace_activations
from bild.models.kernels.activation import GELU, SILU, activation, plain_activation
from bild.models.kernels.operators import ACTIVATION, operator

pytestmark = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
KINDS = {"gelu": GELU, "silu": SILU}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("columns", "first", "factor", "width"), [
    (64, 0, -1, 64), (64, 0, 32, 32), (96, 64, 0, 32), (37, 3, 20, 17), (1, 0, -1, 1), (50, 0, 0, 50),
])  # fmt: skip
def test_equals_the_reference(dtype, kind, columns, first, factor, width):
    states = (torch.randn(3, 2, columns) * 4).to(dtype)
    found = activation(states, first, factor, width, kind)
    expected = plain_activation(states.double(), first, factor, width, kind)
    assert found.dtype == dtype and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype], atol=1e-7)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_far_out_and_no_numbers(kind):
    states = torch.tensor([0.0, -0.0, 1e-30, 12.0, -12.0, 80.0, -80.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
    found, expected = (each(states, 0, -1, len(states), kind).double() for each in (activation, plain_activation))
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-30 if kind == SILU else 2e-7, equal_nan=True)


def test_rows_that_lie_apart():
    states = torch.randn(4, 6, 64)[:, 1::2]
    assert torch.equal(activation(states, 0, 32, 32, SILU), activation(states.contiguous(), 0, 32, 32, SILU))


class Feeding(nn.Module):
    """The first half of a feed-forward layer, in the form that transformers has it."""

    def __init__(self, name: str, gated: bool, turned: bool = False, own: bool = True) -> None:
        super().__init__()
        make = (lambda: _product(64, 96)) if own else (lambda: nn.Linear(64, 96).requires_grad_(False))
        self.gate, self.up = make(), make()
        self.act, self.gated, self.turned = ACT2FN[name], gated, turned

    def forward(self, states):
        active = self.act(self.gate(states))
        if not self.gated:
            return active
        return self.up(states) * active if self.turned else active * self.up(states)


def _product(inputs: int, outputs: int) -> nn.Module:
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    return Int8Linear(linear.weight, linear.bias, own_kernel=True)


def replaced(module):
    states = torch.randn(2, 3, 64)
    program = torch.export.export(module, (states,), strict=False)
    expected = module(states)
    join_products(program.graph)
    count = replace_activations(program.graph)
    program.graph.lint()
    program.graph.eliminate_dead_code()
    torch.testing.assert_close(program.module()(states), expected, rtol=1e-5, atol=1e-6)
    return count, {str(node.target) for node in program.graph.nodes}


@torch.no_grad()
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "silu"])
def test_takes_its_place_with_the_factor(name, gated, turned):
    count, targets = replaced(Feeding(name, gated, turned))
    assert count == 1 and str(operator(ACTIVATION)) in targets
    assert not any(other in target for target in targets for other in ("aten.mul", "tanh", "gelu", "silu"))


@torch.no_grad()
def test_what_is_multiplied_by_something_else_keeps_its_product():
    class Other(Feeding):
        def forward(self, states):
            active = self.act(self.gate(states))
            return active * self.up(states + 1.0) + active

    count, targets = replaced(Other("silu", gated=True))
    assert count == 1 and "aten.mul.Tensor" in targets


@torch.no_grad()
@pytest.mark.parametrize(("name", "own"), [("gelu", True), ("relu", True), ("silu", False), ("gelu_new", False)])
def test_other_activations_and_those_of_torchs_products_are_left_alone(name, own):
    assert replaced(Feeding(name, gated=True, own=own))[0] == 0
