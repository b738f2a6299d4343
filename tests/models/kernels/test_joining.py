"""Products of the same states made one: which, and that no number changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bild.models.int4 import Int4Linear
from bild.models.int8 import Int8Linear
from bild.models.kernels import building, has_all_products, join_products
from bild.models.kernels.operators import INT4_LINEAR, LINEAR, operator

pytestmark = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")


class Attention(nn.Module):
    """Products of two different states, of these widths."""

    def __init__(self, first: list[int], second: list[int], bias: bool, kind: str) -> None:
        super().__init__()
        self.first, self.second = (
            nn.ModuleList([_layer(outputs, bias, kind) for outputs in each]) for each in (first, second)
        )

    def forward(self, states: torch.Tensor):
        twice = states * 2
        return [*[layer(states) for layer in self.first], *[layer(twice) for layer in self.second]]


def _layer(outputs: int, bias: bool, kind: str) -> nn.Module:
    linear = nn.Linear(64, outputs, bias=bias).requires_grad_(False)
    if kind == INT4_LINEAR:
        return Int4Linear(linear.weight, linear.bias)
    return Int8Linear(linear.weight, linear.bias, own_kernel=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", [LINEAR, INT4_LINEAR])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "fewer"),
    [
        ([64, 32, 32], [96, 64], 3),
        ([64], [32], 0),
        # Not whole units, and more than three.
        ([40, 64], [32, 32, 32, 32], 0),
        ([40, 64, 96], [32], 1),
    ],
)
def test_products_of_the_same_states_are_made_one_and_keep_their_numbers(first, second, fewer, bias, kind):
    module, states = Attention(first, second, bias, kind), torch.randn(2, 3, 64)
    program = torch.export.export(module, (states,), strict=False)
    count = sum(node.target is operator(kind) for node in program.graph.nodes)
    expected = module(states)
    assert join_products(program.graph) == fewer
    program.graph.lint()
    assert sum(node.target is operator(kind) for node in program.graph.nodes) == count - fewer
    for found, right in zip(program.module()(states), expected, strict=True):
        assert torch.equal(found, right)


@torch.no_grad()
def test_a_graph_whose_products_are_all_ours_is_told_from_others():
    module = Attention([64], [32], bias=True, kind=LINEAR)
    others = {"mm": lambda x: x @ torch.ones(32, 5), "linear": nn.Linear(32, 5), "none": lambda x: x + 1}

    def has_all(function) -> bool:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = function if isinstance(function, nn.Module) else nn.Identity()
                self.module = module

            def forward(self, states):
                return function(self.module(states)[1])

        return has_all_products(torch.export.export(Whole(), (torch.randn(2, 3, 64),), strict=False).graph)

    assert {name: has_all(function) for name, function in others.items()} == {
        "mm": False,
        "linear": False,
        "none": True,
    }
    plain = torch.export.export(nn.ReLU(), (torch.randn(2, 3),), strict=False)
    assert not has_all_products(plain.graph)
