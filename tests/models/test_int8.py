"""Weights in eight bits: how far they are off, what they replace, and what cannot take them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim
from transformers.pytorch_utils import Conv1D

from bild import BigLittleDecoder, InputError, LoadError
from bild.models import EagerModel, to_int8
from bild.models.compiled import compiling
from bild.models.int8 import Int8Linear, quantize_rows
from bild.models.kernels import building
from bild.models.loading.hardware import resolve_dtype
from tests.compiled import check_compiled
from tests.networks import build


def test_each_weight_is_off_by_half_a_step_of_its_row_at_most():
    weight = torch.randn(24, 64) * torch.logspace(-4, 2, 24)[:, None]
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == torch.int8
    torch.testing.assert_close(scale, weight.abs().amax(1) / 127)
    assert ((rounded * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()
    assert (rounded.abs().amax(1) == 127).all()


def test_a_row_of_zeros_stays_zero():
    rounded, scale = quantize_rows(torch.zeros(2, 32, dtype=torch.bfloat16))
    assert not rounded.any() and not torch.isnan(scale).any()


def test_in_bfloat16_the_scale_is_the_one_that_is_stored():
    weight = torch.randn(50, 64).to(torch.bfloat16)
    rounded, scale = quantize_rows(weight)
    assert scale.dtype == torch.bfloat16
    error = (rounded.float() * scale.float()[:, None] - weight.float()).abs()
    # A scale rounded down leaves the largest weight of its row beyond 127 steps.
    assert (error <= 1.01 * scale.float()[:, None]).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 6])
def test_without_our_kernel_a_layer_multiplies_by_its_rounded_weights(bias, rows):
    layer = nn.Linear(64, 40, bias=bias).requires_grad_(False)
    states = torch.randn(2, rows, 64)
    replaced = Int8Linear(layer.weight, layer.bias)
    plain = replaced.weight.float() * replaced.scale[:, None]
    torch.testing.assert_close(replaced(states), nn.functional.linear(states, plain, layer.bias), atol=1e-5, rtol=1e-4)
    error = (replaced(states) - layer(states)).norm() / layer(states).norm()
    assert 0 < error < 0.01


@pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")
@pytest.mark.compiles
def test_compiled_layers_hold_their_weights_once_and_multiply_as_uncompiled(tmp_path, monkeypatch):
    monkeypatch.setenv("BILD_CACHE", str(tmp_path))
    wide, narrow = nn.Linear(1024, 2016), nn.Linear(2016, 1024)
    module = nn.Sequential(Int8Linear(wide.weight, wide.bias, True), nn.ReLU(), Int8Linear(narrow.weight, None, True))
    examples = torch.randn(2, 3, 1024)
    varying = ({0: Dim("B", min=2, max=100), 1: Dim("T", min=2, max=100)},)
    run = compiling.compiled(module, (examples,), varying, name="layers", progress=lambda _: None)
    for shape in ((1, 1), (2, 3), (1, 40)):
        states = torch.randn(*shape, 1024)
        torch.testing.assert_close(run([states])[0], module(states), atol=1e-5, rtol=1e-4)
    weights = 2 * 1024 * 2016
    assert weights < compiling.file_of("layers").stat().st_size < 1.8 * weights


@pytest.mark.compiles
def test_a_network_in_int8_compiles_and_scores_as_uncompiled():
    check_compiled(to_int8(build("gpt2", width=64, layers=1, dtype=torch.float32)))


def linear_layers(network) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if type(m) in (nn.Linear, Conv1D, Int8Linear)}


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "llama"])
def test_every_linear_layer_and_the_head_become_int8_and_nothing_else(name):
    network = build(name, width=64, dtype=torch.float32)
    before = linear_layers(network)
    others = {
        key: value.dtype for key, value in network.named_parameters() if "norm" in key or "embed" in key or "ln_" in key
    }
    expected = EagerModel(build(name, width=64, dtype=torch.float32)).start(
        [[5, 6]] if name in ("t5", "bart") else [[]]
    )
    assert to_int8(network) is network
    after = linear_layers(network)
    assert list(after) == list(before) and all(type(layer) is Int8Linear for layer in after.values())
    assert type(network.get_output_embeddings()) is Int8Linear
    assert others and all(network.get_parameter(key).dtype == dtype for key, dtype in others.items())
    found = EagerModel(network).start([[5, 6]] if name in ("t5", "bart") else [[]])
    one, other = expected.extend([[3, 4, 5]], last=3), found.extend([[3, 4, 5]], last=3)
    assert 0 < (one - other).norm() / one.norm() < 0.05


def test_a_network_none_of_whose_layers_fit_is_named_and_refused():
    with pytest.raises(LoadError, match=r"LlamaForCausalLM has no linear layer that int8 can hold .* use dtype"):
        to_int8(build("llama", width=16, intermediate_size=24, dtype=torch.float32))


@pytest.fixture(scope="module")
def int8_pair() -> BigLittleDecoder:
    return BigLittleDecoder.from_pretrained(dtype="int8", runtime="eager")


def bytes_of(pair: BigLittleDecoder) -> int:
    """What the large model's weights take; a tied one counts once."""
    return sum({each.data_ptr(): each.nbytes for each in pair.large.network.state_dict().values()}.values())


def test_a_pair_in_int8_holds_about_a_third_of_the_bytes_and_writes_nearly_the_same(int8_pair, bundled, sentences):
    kinds = {type(module) for model in (int8_pair.large, int8_pair.small) for module in model.network.modules()}
    assert Int8Linear in kinds and nn.Linear not in kinds
    # Of float32; what is no linear layer, the embeddings, is in the dtype that suits the machine.
    most = 1 / 3 if resolve_dtype() == torch.bfloat16 else 2 / 5
    assert 1 / 4 < bytes_of(int8_pair) / bytes_of(bundled) < most
    found = [result.token_ids for result in int8_pair.generate(sentences[:8], "large")]
    expected = [result.token_ids for result in bundled.generate(sentences[:8], "large")]
    first = sum(one[:3] == other[:3] for one, other in zip(found, expected, strict=True))
    assert first >= 6


def test_int8_weights_are_not_saved_as_a_checkpoint(int8_pair, tmp_path):
    with pytest.raises(InputError, match="dtype is int8, which checkpoints do not hold"):
        int8_pair.save_pretrained(tmp_path / "pair")
    assert not (tmp_path / "pair").exists()


def test_an_unknown_dtype_names_int8_among_the_allowed():
    with pytest.raises(InputError, match=r"dtype is .int3.; allowed are auto, float32, .*int8"):
        BigLittleDecoder.from_pretrained(dtype="int3")
