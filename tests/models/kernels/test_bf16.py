"""Our linear layer in bfloat16: numbers against the reference, odd shapes, strides, threads, and in a graph."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bild.models.kernels import bf16, building, join_products, replace_linears
from bild.models.kernels.bf16 import bf16_linear, pack
from bild.models.kernels.operators import BF16_LINEAR, operator

pytestmark = pytest.mark.skipif(
    not (building.is_supported() and bf16.is_supported()), reason="this processor lacks the instructions"
)


def off(found, states, weight, bias=None):
    expected = nn.functional.linear(states.double(), weight.double(), None if bias is None else bias.double())
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [1, 2, 6, 7, 12, 13, 31, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 2), (31, 34), (64, 256), (70, 6), (1000, 96)])
def test_equals_the_reference(rows, outputs, inputs):
    weight, bias = torch.randn(outputs, inputs).bfloat16(), torch.randn(outputs).bfloat16()
    states = torch.randn(rows, inputs).bfloat16()
    assert off(bf16_linear(states, pack(weight), None, outputs), states, weight) < 4e-3
    assert off(bf16_linear(states, pack(weight), bias, outputs), states, weight, bias) < 4e-3


def test_rows_may_lie_apart():
    weight, states = torch.randn(40, 32).bfloat16(), torch.randn(5, 3, 64).bfloat16()[..., :32].transpose(0, 1)
    found = bf16_linear(states, pack(weight), None, 40)
    assert found.shape == (3, 5, 40) and off(found, states, weight) < 4e-3


def test_a_row_that_is_not_finite_spoils_no_other():
    weight, states = torch.randn(40, 32).bfloat16(), torch.randn(4, 32).bfloat16()
    expected = bf16_linear(states, pack(weight), None, 40)
    states[2, 5] = math.nan
    found = bf16_linear(states, pack(weight), None, 40)
    assert found[2].isnan().all() and torch.equal(found[[0, 1, 3]], expected[[0, 1, 3]])


def test_where_there_are_tiles_the_templates_stay(monkeypatch):
    monkeypatch.setattr(bf16, "_is_faster", lambda *_: True)
    monkeypatch.setattr(bf16, "has_tiles", lambda: True)
    assert replace_linears(torch.export.export(Three(), (torch.randn(3, 64).bfloat16(),)).graph) == 0


def test_threads_and_no_rows():
    weight, states = torch.randn(3000, 256).bfloat16(), torch.randn(9, 256).bfloat16()
    one, two = (operator(BF16_LINEAR)(states, pack(weight), None, 3000, threads) for threads in (1, 2))
    assert torch.equal(one, two)
    assert bf16_linear(states[:0], pack(weight), None, 3000).shape == (0, 3000)


@pytest.mark.parametrize(("states", "says"), [
    (torch.randn(2, 16), "in bfloat16"), (torch.randn(2, 18).bfloat16(), "do not fit"),
    (torch.randn(16, 2).bfloat16().t(), "dense"),
])  # fmt: skip
def test_refuses_what_it_cannot_read(states, says):
    with pytest.raises(RuntimeError, match=says):
        bf16_linear(states, pack(torch.randn(8, 16).bfloat16()), None, 8)


class Three(nn.Module):
    """Three layers of the same states, one with an odd number of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, outputs, bias=False) for outputs in (64, 96, 41))
        self.bfloat16()

    def forward(self, states):
        return [layer(states) for layer in self.layers]


@pytest.mark.parametrize("is_faster", [True, False])
def test_a_graph_multiplies_by_our_kernel_where_that_is_faster(is_faster, monkeypatch):
    monkeypatch.setattr(bf16, "_is_faster", lambda *_: is_faster)
    monkeypatch.setattr(bf16, "has_tiles", lambda: False)
    module, states = Three(), torch.randn(3, 64).bfloat16()
    program = torch.export.export(module, (states,))
    expected = program.module()(states)
    assert replace_linears(program.graph) == (3 if is_faster else 0)
    assert join_products(program.graph) == (1 if is_faster else 0)
    program.graph_module.recompile()
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(operator(BF16_LINEAR)) == (2 if is_faster else 0)
    for found, wanted in zip(program.module()(states), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
