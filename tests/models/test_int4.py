"""Weights in four bits: what they replace, how far scores move, and what cannot take them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bild import BigLittleDecoder, InputError, LoadError
from bild.models import EagerModel, kernels, rounded_format, to_int4
from bild.models.int4 import Int4Linear
from bild.models.int8 import Int8Linear
from bild.models.kernels import building, int4
from bild.models.parts import head_of
from bild.models.short_list import shorten
from tests.compiled import check_compiled
from tests.networks import build

needs_kernel = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")


@needs_kernel
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_by_its_rounded_weights(bias):
    layer = nn.Linear(64, 40, bias=bias).requires_grad_(False)
    replaced, states = Int4Linear(layer.weight, layer.bias), torch.randn(2, 3, 64)
    expected = kernels.plain_int4_linear(states, *kernels.unpack_int4(replaced.weight, 40), layer.bias)
    torch.testing.assert_close(replaced(states), expected, atol=1e-5, rtol=1e-5)
    assert 0.03 < (replaced(states) - layer(states)).norm() / layer(states).norm() < 0.15


@needs_kernel
def test_on_another_device_a_layer_widens_its_weights():
    layer = Int4Linear(torch.randn(40, 64), torch.randn(40)).to("meta")
    assert layer(torch.empty(3, 64, device="meta", dtype=torch.float32)).shape == (3, 40)


@needs_kernel
def test_a_layer_converted_to_another_format_keeps_its_numbers():
    layer, states = Int4Linear(torch.randn(40, 64), None), torch.randn(3, 64).bfloat16()
    expected = layer(states)
    assert torch.equal(layer.to(torch.bfloat16)(states), expected)


@needs_kernel
@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_every_linear_layer_becomes_int4_and_the_head_int8(name):
    network = build(name, width=64, dtype=torch.float32)
    places = [place for place, each in network.named_modules() if type(each) in (nn.Linear, Conv1D)]
    others = {key for key, _ in network.named_parameters() if "norm" in key or "embed" in key or "ln_" in key}
    sources = [[5, 6]] if name == "t5" else [[]]
    before = EagerModel(build(name, width=64, dtype=torch.float32)).start(sources).extend([[3, 4, 5]], last=3)
    assert to_int4(network) is network
    head = head_of(network)
    assert type(head) is Int8Linear
    kinds = {type(network.get_submodule(place)) for place in places if network.get_submodule(place) is not head}
    assert kinds == {Int4Linear} and rounded_format(network) == "int4"
    assert all(network.get_parameter(key).dtype == torch.float32 for key in others)
    after = EagerModel(network).start(sources).extend([[3, 4, 5]], last=3)
    assert 0 < (before - after).norm() / before.norm() < 0.25


@needs_kernel
def test_a_short_head_stays_in_int8():
    network = to_int4(shorten(build("llama", width=64, dtype=torch.float32), range(2, 40)))
    assert type(head_of(network).rows) is Int8Linear
    assert EagerModel(network).start([[]]).extend([[3, 4]], last=1).shape[-1] > 0


@needs_kernel
def test_layers_of_other_widths_stay_as_they_are():
    network = build("llama", width=64, intermediate_size=72, dtype=torch.float32)
    to_int4(network)
    feed_forward = network.model.layers[0].mlp
    assert type(feed_forward.up_proj) is Int4Linear and type(feed_forward.down_proj) is nn.Linear
    with pytest.raises(LoadError, match=r"LlamaForCausalLM has no linear layer that int4 can hold .* use dtype"):
        to_int4(build("llama", width=16, intermediate_size=24, dtype=torch.float32))


def test_without_the_kernel_int4_is_refused_before_a_weight_is_read(monkeypatch):
    monkeypatch.setattr(int4, "operator", lambda _: None)
    message = r"^dtype is int4, which needs .*AVX2.* compiler; use dtype int8$"
    with pytest.raises(InputError, match=message):
        BigLittleDecoder.from_pretrained(dtype="int4")
    with pytest.raises(InputError, match=message):
        to_int4(build("llama", width=64, dtype=torch.float32))


@needs_kernel
@pytest.mark.compiles
def test_a_network_in_int4_compiles_and_scores_as_uncompiled():
    check_compiled(to_int4(build("llama", width=64, layers=1, dtype=torch.float32)))


@needs_kernel
def test_a_pair_in_int4_writes_much_as_the_pair_it_came_from(bundled, sentences, tmp_path):
    pair = BigLittleDecoder.from_pretrained(dtype="int4", runtime="eager")
    assert pair.dtype == "int4"
    found = [result.token_ids for result in pair.generate(sentences[:8], "large")]
    expected = [result.token_ids for result in bundled.generate(sentences[:8], "large")]
    assert sum(one[:3] == other[:3] for one, other in zip(found, expected, strict=True)) >= 5
    with pytest.raises(InputError, match="dtype is int4, which checkpoints do not hold"):
        pair.save_pretrained(tmp_path / "pair")
