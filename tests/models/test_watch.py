"""A model reads with its network as it is now, whatever was done to that since it was loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bild.errors import LoadError
from bild.models import EagerModel
from bild.models.compiled import runner
from bild.models.early_exit import SplitModel
from bild.models.watch import Watch
from tests.networks import build, forward

SOURCE, TOKENS = [5, 6, 7], [3, 4, 8, 9]


def add_in_place(network):
    next(network.get_decoder().parameters()).data += 0.5


def copy_other(network):
    network.load_state_dict(build("t5", seed=7).state_dict())


def exchange_layer(network):
    layer = network.get_decoder().block[0].layer[-1].DenseReluDense
    layer.wi = copy.deepcopy(layer.wi)
    with torch.no_grad():
        layer.wi.weight.mul_(0.5)


def exchange_parameter(network):
    head = network.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 0.5)


CHANGES = (add_in_place, copy_other, exchange_layer, exchange_parameter)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [EagerModel, lambda network: SplitModel(network, 1)], ids=["whole", "split"])
def test_a_change_of_the_network_is_a_change_of_the_model(change, kind):
    model = kind(build("t5"))
    before = model.start([SOURCE]).extend([TOKENS], last=4)[0]
    change(model.network)
    expected = forward(model.network, SOURCE, TOKENS)
    assert (before - expected).abs().max() > 1e-3
    torch.testing.assert_close(model.start([SOURCE]).extend([TOKENS], last=4)[0], expected, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("is_native", [False, True])
def test_whoever_compiled_the_weights_sees_every_change(change, is_native):
    network = build("t5")
    watch = Watch(network)
    if is_native:
        assert runner.is_loaded()
        watch.tell_by(runner.Fingerprint)
    assert not watch.sees_change() and not watch.sees_other_modules()
    change(network)
    assert watch.sees_change()
    assert watch.sees_other_modules() == (change in (exchange_layer, exchange_parameter))


def test_a_change_from_before_the_telling_was_handed_over_stays_one():
    network = build("t5")
    watch = Watch(network)
    add_in_place(network)
    assert runner.is_loaded()
    watch.tell_by(runner.Fingerprint)
    assert watch.sees_change()


def test_an_adapter_that_is_switched_is_seen():
    network = build("t5")
    layer = network.get_decoder().block[0]
    layer._active_adapter = ["one"]
    watch = Watch(network)
    assert not watch.sees_change()
    layer._active_adapter = ["two"]
    assert watch.sees_change()


def test_another_vocabulary_is_refused():
    network = build("gpt2")
    model = EagerModel(network)
    network.resize_token_embeddings(44)
    assert not model.is_current()
    with pytest.raises(LoadError, match="vocabulary of GPT2LMHeadModel was changed from 40 to 44 tokens"):
        model.start([[]])
