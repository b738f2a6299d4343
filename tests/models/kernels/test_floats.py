"""Our linear layer in bfloat16 and float32: numbers against the reference, odd shapes, strides, threads, in a graph."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bild.models.kernels import floats, join_products, replace_linears
from bild.models.kernels.floats import float_linear, pack
from bild.models.kernels.operators import FLOAT_LINEAR, operator

# How far off by dtype: rounding the result, and the order of the sums.
OFF = {dtype: off for dtype, off in {torch.bfloat16: 4e-3, torch.float32: 1e-6}.items() if floats.is_supported(dtype)}
pytestmark = [
    pytest.mark.skipif(not OFF, reason="this processor lacks the instructions"),
    pytest.mark.parametrize("dtype", OFF, ids=lambda dtype: str(dtype).removeprefix("torch.")),
]


def off(found, states, weight, bias=None):
    expected = nn.functional.linear(states.double(), weight.double(), None if bias is None else bias.double())
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 2, 6, 7, 12, 13, 31, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (31, 34), (64, 256), (70, 6), (1000, 96)])
def test_equals_the_reference(rows, outputs, inputs, dtype):
    weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
    states = torch.randn(rows, inputs).to(dtype)
    assert off(float_linear(states, pack(weight), None, outputs), states, weight) < OFF[dtype]
    assert off(float_linear(states, pack(weight), bias, outputs), states, weight, bias) < OFF[dtype]


def test_an_odd_number_of_inputs_has_no_pairs(dtype):
    program = torch.export.export(nn.Linear(33, 64).to(dtype), (torch.randn(3, 33).to(dtype),))
    linear = next(node for node in program.graph.nodes if node.target is torch.ops.aten.linear.default)
    assert floats._fits(*linear.args) == (dtype == torch.float32)


def test_rows_may_lie_apart(dtype):
    weight, states = torch.randn(40, 32).to(dtype), torch.randn(5, 3, 64).to(dtype)[..., :32].transpose(0, 1)
    found = float_linear(states, pack(weight), None, 40)
    assert found.shape == (3, 5, 40) and off(found, states, weight) < OFF[dtype]


def test_a_row_that_is_not_finite_spoils_no_other(dtype):
    weight, states = torch.randn(40, 32).to(dtype), torch.randn(4, 32).to(dtype)
    expected = float_linear(states, pack(weight), None, 40)
    states[2, 5] = math.nan
    found = float_linear(states, pack(weight), None, 40)
    assert found[2].isnan().all() and torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])


@pytest.mark.parametrize("rows", [7, 8, 9, 16, 17, 33, 64, 241])
@pytest.mark.parametrize("outputs", [33, 64, 95])
def test_any_number_of_rows_and_units(rows, outputs, dtype):
    weight, states = torch.randn(outputs, 96).to(dtype), torch.randn(rows, 96).to(dtype)
    found = float_linear(states, pack(weight), None, outputs)
    for row, expected in zip(found, states.double() @ weight.double().t(), strict=True):
        assert (row - expected).norm() < OFF[dtype] * expected.norm()


def test_threads_and_no_rows(dtype):
    weight, states = torch.randn(3000, 256).to(dtype), torch.randn(9, 256).to(dtype)
    one, two = (operator(FLOAT_LINEAR)(states, pack(weight), None, 3000, threads) for threads in (1, 2))
    assert torch.equal(one, two)
    assert float_linear(states[:0], pack(weight), None, 3000).shape == (0, 3000)


@pytest.mark.parametrize(("states", "says"), [
    (torch.randn(2, 16).double(), "in bfloat16 or float32"), (torch.randn(2, 18), "do not fit"),
    (torch.randn(16, 2).t(), "dense"),
])  # fmt: skip
def test_refuses_what_it_cannot_read(states, says, dtype):
    states = states if states.dtype == torch.float64 else states.to(dtype)
    with pytest.raises(RuntimeError, match=says):
        float_linear(states, pack(torch.randn(8, 16).to(dtype)), None, 8)


def test_refuses_states_of_another_number_format(dtype):
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(RuntimeError, match="both alike"):
        float_linear(torch.randn(2, 16).to(other), pack(torch.randn(8, 16).to(dtype)), None, 8)


class Three(nn.Module):
    """Three layers of the same states, one with an odd number of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, outputs, bias=False) for outputs in (64, 96, 41))

    def forward(self, states):
        return [layer(states) for layer in self.layers]


@pytest.mark.parametrize("is_faster", [True, False])
def test_a_graph_multiplies_by_our_kernel_where_that_is_faster(is_faster, dtype, monkeypatch):
    monkeypatch.setattr(floats, "_is_faster", lambda *_: is_faster)
    module, states = Three().to(dtype), torch.randn(3, 64).to(dtype)
    program = torch.export.export(module, (states,))
    expected = program.module()(states)
    assert replace_linears(program.graph) == (3 if is_faster else 0)
    assert join_products(program.graph) == (1 if is_faster else 0)
    program.graph_module.recompile()
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(operator(FLOAT_LINEAR)) == (2 if is_faster else 0)
    for found, wanted in zip(program.module()(states), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=5 * OFF[dtype], atol=5 * OFF[dtype])
