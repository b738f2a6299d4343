"""A network whose weights are not whole in this process is refused, where a pass would wait for ever or fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.integrations import deepspeed

import bild
from bild import LoadError
from tests.networks import build, perturbed


def zero3_everywhere(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bild.models.spread.is_deepspeed_zero3_enabled", lambda: True)


def zero3(network: Any, _: pytest.MonkeyPatch) -> None:
    next(network.parameters()).ds_id = 0


def fsdp(network: Any, _: pytest.MonkeyPatch) -> None:
    network._is_fsdp_managed_module = True


def fsdp_of_a_layer(network: Any, _: pytest.MonkeyPatch) -> None:
    list(network.modules())[4]._is_fsdp_managed_module = True


def flat(network: Any, _: pytest.MonkeyPatch) -> None:
    next(network.parameters())._is_flat_param = True


def tensor_parallel(network: Any, _: pytest.MonkeyPatch) -> None:
    next(network.parameters()).device_mesh = object()


def empty(network: Any, _: pytest.MonkeyPatch) -> None:
    """As FSDP leaves what it keeps in another process."""
    network.model.norm.weight.data = torch.empty(0)


def offloaded(network: Any, _: pytest.MonkeyPatch) -> None:
    network.get_input_embeddings().to("meta")


SPREAD = [
    (zero3, "by DeepSpeed ZeRO-3"),
    (zero3_everywhere, "by DeepSpeed ZeRO-3"),
    (fsdp, "by FSDP"),
    (fsdp_of_a_layer, "by FSDP"),
    (flat, "by FSDP"),
    (tensor_parallel, "by tensor parallelism"),
    (empty, "some of its weights are empty in this one"),
    (offloaded, "has weights that are not in memory"),
]


@pytest.mark.parametrize(("spread", "says"), SPREAD, ids=[each[0].__name__ for each in SPREAD])
def test_it_is_refused_with_what_to_do(spread, says, monkeypatch):
    large = build("llama", dtype=torch.float32)
    small = perturbed(large, 0.1)
    spread(large, monkeypatch)
    with pytest.raises(
        LoadError, match=rf"LlamaForCausalLM .*{says}.*; load all of it in every process, on one device"
    ):
        bild.BigLittleDecoder(large, small)
    if spread not in (offloaded, empty):
        ids = torch.tensor([[5, 6, 7]])
        door = bild.custom_generate(small, "exact")
        with pytest.raises(LoadError, match=says):
            large.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, custom_generate=door)


def test_a_pair_that_is_spread_later_is_refused_then():
    large = build("llama", dtype=torch.float32)
    decoder = bild.BigLittleDecoder(large, perturbed(large, 0.1))
    assert decoder.generate([[5, 6]], "exact", max_new_tokens=2)
    large.get_input_embeddings().to("meta")
    with pytest.raises(LoadError, match="not in memory"):
        decoder.generate([[5, 6]], "exact", max_new_tokens=2)


def test_one_process_with_whole_weights_is_none_of_these():
    assert not deepspeed.is_deepspeed_zero3_enabled()
    assert bild.BigLittleDecoder(build("llama"), build("llama"))
