"""Hyperbolic tangents by way of the logistic function: the same numbers, up to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from bild.models.compiled.tanh import replace_tanh

STATES = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-4, -1e-4, 80.0, -80.0, torch.inf, torch.nan])])


class Tanh(nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(states)


MODULES = {"tanh": Tanh, **{name: lambda name=name: ACT2FN[name] for name in ("gelu_new", "gelu_pytorch_tanh")}}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_numbers_stay(name, dtype):
    module, states = MODULES[name](), STATES.to(dtype)
    program = torch.export.export(module, (states,), strict=False)
    expected = module(states)
    assert replace_tanh(program.graph) == 1
    program.graph.lint()
    assert not any("tanh" in str(node.target) for node in program.graph.nodes)
    found = program.module()(states)
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, expected, equal_nan=True, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=2e-7
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["gelu", "silu", "relu"])
def test_other_activations_are_left_alone(name):
    program = torch.export.export(ACT2FN[name], (STATES,), strict=False)
    assert replace_tanh(program.graph) == 0
