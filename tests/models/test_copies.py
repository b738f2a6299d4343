"""A loaded model is copied, pickled and saved like any other object, and the user's network stays as it was."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import bild
from bild.models import EagerModel
from tests.networks import build, perturbed

SOURCE = [[5, 6, 7]]


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def saved(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = pytest.mark.parametrize("again", [copy.deepcopy, pickled, saved])


def texts(decoder: bild.BigLittleDecoder) -> list[Any]:
    results = decoder.generate(SOURCE, "exact", max_new_tokens=8)
    return [(result.token_ids, result.writers) for result in results]


@WAYS
@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_a_decoder_is_copied_with_both_networks(name, again: Callable[[Any], Any]):
    large = build(name, seed=3)
    decoder = bild.BigLittleDecoder(large, perturbed(large, 0.2))
    decoder.large.vocab_size = decoder.small.vocab_size = 39
    expected = texts(decoder)
    other = again(decoder)
    assert (other.large.vocab_size, other.small.vocab_size) == (39, 39)
    assert texts(other) == expected
    # The copy reads its own weights.
    with torch.no_grad():
        for weight in large.parameters():
            weight.zero_()
    assert texts(other) == expected
    assert texts(decoder) != expected


@WAYS
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_so_is_an_early_exit_whose_weights_stay_shared(name, again: Callable[[Any], Any]):
    decoder = bild.BigLittleDecoder(
        build(name, seed=3, **({"num_decoder_layers": 2} if name == "t5" else {})), "exit:1"
    )
    other = again(decoder)
    assert texts(other) == texts(decoder)
    weights = {weight.data_ptr() for weight in other.large.network.parameters()}
    assert {weight.data_ptr() for weight in other.small.network.parameters()} <= weights


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_network_stays_as_it_was(name):
    """Modes, hooks and attributes of all modules; custom_generate used to leave it in eval mode."""
    large = build(name, seed=3, dtype=torch.float32)
    large.train()
    large.get_input_embeddings().eval()

    def facts() -> Any:
        modules = large.named_modules()
        return {each: (module.training, sorted(vars(module)), len(module._forward_hooks)) for each, module in modules}

    before, settings = facts(), (large.config.to_dict(), large.generation_config.to_dict(), list(large.state_dict()))
    EagerModel(large).start(SOURCE if name == "t5" else [[]]).extend([[5, 6]])
    assert facts() == before
    ids = torch.tensor(SOURCE)
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6}
    large.generate(ids, **given, custom_generate=bild.custom_generate(perturbed(large, 0.2), "exact"))
    # The pair is kept with the large network, and freed with it; a copy or a file of the network is without it.
    assert large.__dict__.pop("_bild_pair") is not None
    assert facts() == before
    assert (large.config.to_dict(), large.generation_config.to_dict(), list(large.state_dict())) == settings
