"""Which layers are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, PreTrainedModel

from bild.errors import InputError, LoadError
from bild.models.cutting import check_droppable, with_layers
from bild.training.drafting.layers import choose_layers, without_least
from bild.training.drafting.shape import Shape, spaced
from bild.training.drafting.short_list import most_frequent
from tests.networks import build, word_tokenizer

TEXT = [{"input_ids": torch.tensor([[4, 9, 2, 7, 11, 3]]), "labels": torch.tensor([[-100, 2, 7, 11, 3, 5]])}]


def logits_of(network: PreTrainedModel) -> torch.Tensor:
    ids = torch.tensor([[4, 9, 2, 7, 11, 3]])
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if network.config.is_encoder_decoder else {})
    with torch.inference_mode():
        return network(**inputs, use_cache=False).logits


def test_equal_distances_hold_the_ends():
    assert [spaced(count, 30) for count in (1, 2, 4)] == [[0], [0, 29], [0, 10, 19, 29]]
    assert spaced(5, 5) == [0, 1, 2, 3, 4]


def test_those_stay_that_are_missed_most():
    worth = [3.0, 0.1, 0.5, 2.0, 0.4]

    def apart(kept):
        return sum(value for at, value in enumerate(worth) if at not in kept)

    assert without_least(5, 3, apart) == [0, 2, 3]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_layer_that_does_nothing_is_dropped_and_nobody_misses_it(name):
    network = build(name, layers=4 if name == "llama" else 3, dtype=torch.float32)
    layers = network.model.layers if name == "llama" else network.decoder.block
    idle = layers[2]
    for module in idle.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
    text = [TEXT[0] | ({"decoder_input_ids": TEXT[0]["input_ids"]} if name == "t5" else {})]
    kept = choose_layers(network, Shape(layers="3", choose="measured"), text)
    assert kept == [0, 1, 3]
    torch.testing.assert_close(logits_of(with_layers(network, kept)), logits_of(network))
    # Without a layer that works it is another model, and equal distances would have dropped one.
    assert choose_layers(network, Shape(layers="3", choose="even"), text) == [0, 2, 3]
    assert choose_layers(network, Shape(layers="3"), text) == kept
    assert choose_layers(network, Shape(layers="2,3"), text) == [1, 2]


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "gpt2", "llama", "qwen2"])
def test_a_cut_network_is_the_same_one_once_it_is_saved(name, tmp_path):
    network = build(name, layers=4, dtype=torch.float32)
    encoder = [0, 2] if network.config.is_encoder_decoder else None
    cut = with_layers(network, [1, 3], encoder)
    cut.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(cut))
    assert not torch.allclose(logits_of(cut), logits_of(network))
    # The one it was cut from is as it was.
    torch.testing.assert_close(logits_of(network), logits_of(build(name, layers=4, dtype=torch.float32)))


def test_windows_stay_with_their_layers():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Gemma3TextConfig(**sizes, num_hidden_layers=6, head_dim=8, vocab_size=40, sliding_window=4)
    from transformers import Gemma3ForCausalLM

    cut = with_layers(Gemma3ForCausalLM(config), [1, 5])
    assert cut.config.layer_types == ["sliding_attention", "full_attention"]


def test_layers_that_are_not_there_or_not_their_own_are_refused():
    network = build("llama", layers=3, dtype=torch.float32)
    for kept in ([], [3], [1, 1]):
        with pytest.raises(InputError, match="allowed are different ones of 1 to 3"):
            with_layers(network, kept)
    with pytest.raises(InputError, match="the model has no encoder"):
        with_layers(network, [0], [0])
    with pytest.raises(InputError, match="the first encoder layer is left out"):
        with_layers(build("t5", layers=3, dtype=torch.float32), [0], [1])
    network.model.layers[2].mlp = network.model.layers[0].mlp
    with pytest.raises(LoadError, match=r"its layers share their weights, so none can be dropped.*--drafter ngram"):
        check_droppable(network)


def test_the_list_holds_special_tokens_then_the_most_frequent_then_the_first():
    tokenizer = word_tokenizer()
    texts = [[7, 7, 9, 30], [7, 9, 12, 45]]
    ids, share = most_frequent(texts, 5, tokenizer, 40, [20, -1])
    # 0 and 1 are special, 20 ends a text; 45 is no token of the head.
    assert ids == [0, 1, 7, 9, 20] and share == pytest.approx(5 / 7)
    ids, share = most_frequent(texts, 10, tokenizer, 40, [])
    assert ids == [0, 1, 2, 3, 4, 5, 7, 9, 12, 30] and share == 1.0
