"""Cutting a network: what the pieces share, what they compute, and which networks are refused."""

from __future__ import annotations

import re
from random import Random

import pytest
import torch

from bild.errors import InputError, LoadError
from bild.models import kernels, to_int4, to_int8
from bild.models.eager import EagerScorer
from bild.models.early_exit import SplitModel, exit_layer
from bild.models.early_exit import split as cutting
from bild.models.early_exit.split import split
from bild.models.probing import difference
from tests.early_exits import EXITING, LAYERS, deep
from tests.networks import OTHERS, build, build_other, forward, random_source, random_tokens

every_architecture = pytest.mark.parametrize("name", EXITING)


def tensors(network) -> dict[int, int]:
    """Bytes of every storage a network holds, by its place in memory."""
    held = [*network.parameters(), *network.buffers()]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}


def layers_of(network) -> int:
    return network.config.num_decoder_layers if network.config.is_encoder_decoder else network.config.num_hidden_layers


@every_architecture
def test_no_piece_holds_a_weight_of_its_own(name):
    network = deep(name)
    before = tensors(network)
    parts = split(network, 2)
    assert tensors(network) == before
    for piece in (parts.small, parts.upper):
        assert tensors(piece).items() <= before.items()
    assert sum(tensors(parts.small).values()) < sum(before.values())


@pytest.mark.parametrize("rounded", [to_int8, to_int4])
def test_rounded_weights_are_shared_too(rounded):
    if rounded is to_int4 and not kernels.has_int4():
        pytest.skip("this processor lacks the instructions")
    network = rounded(build("t5", layers=LAYERS, width=32, dtype=torch.float32))
    parts, held = split(network, 2), tensors(network)
    assert tensors(parts.small).items() <= held.items() and tensors(parts.upper).items() <= held.items()
    assert len(tensors(parts.small)) > 20


@every_architecture
@pytest.mark.parametrize("count", [1, 3])
def test_the_small_model_is_a_checkpoint_with_the_other_layers_left_out(name, count):
    network = deep(name)
    small = split(network, count).small
    total = layers_of(network)
    sizes = {"num_decoder_layers": count} if network.config.is_encoder_decoder else {"num_hidden_layers": count}
    expected = build(name, layers=LAYERS, seed=9, **sizes)
    missing, unexpected = expected.load_state_dict(network.state_dict(), strict=False)
    left_out = {int(number) for key in unexpected for number in re.findall(r"\.(\d+)\.", key)[:1]}
    assert not missing and left_out == set(range(count, total)) and layers_of(small) == count
    rng = Random(0)
    source, tokens = random_source(rng, network), random_tokens(rng, 12)
    logits = forward(small, source, tokens)
    torch.testing.assert_close(logits, forward(expected, source, tokens), rtol=0.0, atol=1e-12)
    assert (logits - forward(network, source, tokens)).abs().max() > 0.1


def test_layers_of_several_kinds_stay_what_they_are():
    sizes = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    model = SplitModel(build("qwen2", layers=LAYERS, **sizes), 3)
    assert model.network.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    assert model.small.config.layer_types == ["full_attention"] * 2 + ["sliding_attention"]
    tokens = random_tokens(Random(1), 14)
    whole, small = model.start([[]]), model.small.start([[]])
    for begin, end in ((0, 5), (5, 6), (6, 14)):
        for scorer, network in ((whole, model.network), (small, model.parts.small)):
            logits = scorer.extend([tokens[begin:end]], last=end - begin)[0]
            expected = forward(network, [], tokens[:end])[begin:]
            torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-9)


def test_the_original_is_left_as_it_was():
    network = build("t5", layers=LAYERS)
    source, tokens = [5, 6], random_tokens(Random(2), 9)
    before, config = forward(network, source, tokens), network.config.to_dict()
    split(network, 2)
    assert network.config.to_dict() == config
    torch.testing.assert_close(forward(network, source, tokens), before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("small", "count"), [("exit:1", 1), ("exit:12", 12), ("exit", None), ("./exit:1", None)])
def test_what_names_an_exit(small, count):
    assert exit_layer(small) == count


@pytest.mark.parametrize("small", ["exit:", "exit:x", "exit:-1", "exit:1.5", "exit: 2", "exit:2:3", "exit:²"])
def test_what_is_no_number_of_layers(small):
    message = f"an early exit is {small!r}; write exit:N, the first N decoder layers of the large model"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        exit_layer(small)


@pytest.mark.parametrize(("name", "total"), [("t5", LAYERS + 1), ("gpt2", LAYERS)])
def test_an_exit_leaves_layers_on_both_sides(name, total):
    for count in (0, total, total + 1):
        with pytest.raises(
            LoadError, match=rf"small is exit:{count}, .* has {total} decoder layers; .* to exit:{total - 1}$"
        ):
            split(deep(name), count)
    with pytest.raises(LoadError, match=r"has 1 decoder layers; name a small checkpoint$"):
        split(build("gpt2", layers=1), 1)


RIGHT = ("umt5", "falcon", "gpt_neox", "gemma2", "switch_transformers")


@pytest.mark.parametrize("name", [*OTHERS, "bart", "marian"])
def test_any_other_architecture_is_refused_or_right(name):
    network = build(name, dtype=torch.float32) if name in ("bart", "marian") else build_other(name)
    if name not in RIGHT:
        with pytest.raises(LoadError, match=r"cannot exit early|cannot verify drafts"):
            SplitModel(network, 1)
        return
    try:
        model = SplitModel(network, 1)
    except LoadError as error:
        assert name == "umt5" and "cannot verify drafts" in str(error)
        return
    rng = Random(3)
    source, tokens = random_source(rng, network), random_tokens(rng, 12)
    for side, plain in ((model, network), (model.small, model.parts.small)):
        scorer, expected = side.start([source]), forward(plain, source, tokens)
        for begin, end in ((0, 3), (3, 4), (4, 12)):
            logits = scorer.extend([tokens[begin:end]], last=end - begin)[0]
            torch.testing.assert_close(logits, expected[begin:end], rtol=0.0, atol=1e-3)


def test_positions_that_are_added_twice_are_refused_however_small(monkeypatch):
    """Networks differ in what they do to whatever they read; no list of them is complete."""
    network = build("gpt2", layers=LAYERS, dtype=torch.float32)
    positions = network.get_decoder().wpe
    with torch.no_grad():
        positions.weight.mul_(0.05)
    SplitModel(network, 2)
    monkeypatch.setattr(cutting, "_NoPositions", lambda: positions)
    with pytest.raises(LoadError, match="its layers above the exit do not go on from its hidden states"):
        SplitModel(network, 2)


def rounding_by_rows(monkeypatch, amount: float) -> None:
    """Matrix products that round differently for each number of rows, as kernels for 16 bits do."""
    plain = torch.nn.functional.linear

    def linear(states, weight, bias=None):
        generator = torch.Generator().manual_seed(states.shape[-2])
        noise = torch.randn(weight.shape[0], generator=generator, dtype=states.dtype)
        return plain(states, weight, bias) * (1 + amount * noise)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)


def test_rounding_over_many_layers_is_no_wrong_computation(monkeypatch):
    """Of a Llama of thirty layers in bfloat16, rounding alone was more than the test allowed."""
    rounding_by_rows(monkeypatch, 0.004)
    network = build("llama", layers=12, dtype=torch.float32)
    model = SplitModel(network, 4)
    tokens = random_tokens(Random(0), 5)
    whole, pieces = EagerScorer(model, [[]]).extend([tokens], 5), EagerScorer(model, [[]])
    pieces.extend([tokens[:2]])
    assert difference(whole[:, 2:], pieces.extend([tokens[2:]], 3)) > 0.01


def test_a_wrong_computation_is_refused_whatever_the_rounding(monkeypatch):
    rounding_by_rows(monkeypatch, 0.004)
    network = build("gpt2", layers=12, dtype=torch.float32)
    positions = network.get_decoder().wpe
    with torch.no_grad():
        positions.weight.mul_(0.2)
    SplitModel(network, 4)
    monkeypatch.setattr(cutting, "_NoPositions", lambda: positions)
    with pytest.raises(LoadError, match="its layers above the exit do not go on from its hidden states"):
        SplitModel(network, 4)
