"""From a folder to a network: what loads, and what is refused in one clear line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MambaConfig,
    MambaForCausalLM,
    T5EncoderModel,
    T5Model,
)

from bild import LoadError
from bild.models import EagerModel, load_network
from tests.networks import ARCHITECTURES, VOCAB_SIZE, build

CPU = torch.device("cpu")


def load(place):
    return load_network(place, dtype=torch.float32, device=CPU)


def refused(place, message: str) -> str:
    with pytest.raises(LoadError, match=message) as caught:
        load(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint of a tiny Llama with two layers."""
    build("llama", dtype=torch.float32).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def change_config(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loads_what_was_saved(tmp_path, name):
    saved = build(name, dtype=torch.float32)
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(saved) and not loaded.training
    weights = saved.state_dict()
    # T5's configuration ties the head to the embeddings whatever was saved.
    untied = {key: value for key, value in loaded.state_dict().items() if "t5" not in name or key != "lm_head.weight"}
    assert len(untied) >= len(weights) - 1
    for key, value in untied.items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_loads_in_the_dtype_asked_for(folder, dtype):
    network = load_network(str(folder), dtype=dtype, device=CPU)
    assert {parameter.dtype for parameter in network.parameters()} == {dtype}


@pytest.mark.parametrize("name", ["./none", "/no/such/folder", "~/none", "a/b/c"])
def test_a_missing_folder(name):
    refused(name, "no such folder")


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name(name):
    refused(name, "the name of a checkpoint is empty")


def test_a_missing_folder_is_not_made(tmp_path):
    assert str(tmp_path / "none") in refused(tmp_path / "none", "no such folder")
    assert not (tmp_path / "none").exists()


def test_a_file_instead_of_a_folder(folder):
    refused(folder / "config.json", r"config\.json is a file; give the folder")


def test_a_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, r"holds no config\.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-model"}'])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder, re.escape(str(folder)))


@pytest.mark.parametrize("text", ["", '{"repetition_penalty": 1.5', "[]", "\x00"])
def test_recommended_options_that_cannot_be_read(folder, text):
    """transformers goes on without them, to another text."""
    (folder / "generation_config.json").write_text(text)
    refused(folder, r"generation_config\.json cannot be read .*; mend it, or remove it")


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(folder, "cannot be loaded")


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "cannot be loaded")


def test_weights_in_several_files(tmp_path):
    saved = build("llama", dtype=torch.float32, tie_word_embeddings=True)
    saved.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = load(tmp_path)
    for key, value in saved.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)


def test_one_of_several_files_is_missing(tmp_path):
    build("llama", dtype=torch.float32).save_pretrained(tmp_path, max_shard_size="10KB")
    min(tmp_path.glob("model-*.safetensors")).unlink()
    refused(tmp_path, "cannot be loaded")


def test_more_layers_than_weights(folder):
    change_config(folder, num_hidden_layers=3)
    assert "9 weights are missing" in refused(folder, r"the first is model\.layers\.2\.")


def test_weights_of_another_shape(folder):
    change_config(folder, intermediate_size=48)
    refused(folder, "cannot be loaded|another shape")


def test_an_encoder_without_its_decoder(tmp_path):
    T5EncoderModel(build("t5").config).save_pretrained(tmp_path)
    refused(tmp_path, r"a t5 model does not generate text from text \(it was saved as T5EncoderModel\)")
    change_config(tmp_path, is_encoder_decoder=True, architectures=None)
    refused(tmp_path, r"weights are missing.*the first is decoder\.")


def tiny_bert(**options) -> BertForMaskedLM:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=VOCAB_SIZE, **sizes, **options))


def test_an_encoder_only_model(tmp_path):
    tiny_bert().save_pretrained(tmp_path)
    refused(tmp_path, "a bert model does not generate text")


def test_a_model_for_no_text_at_all(folder):
    change_config(folder, model_type="vit")
    refused(folder, "a vit model does not generate text")


@pytest.mark.parametrize("name", ["no-such-model", "no-one/no-such-model"])
def test_a_hub_name_without_network(name):
    message = refused(name, "no such folder, and the hub has no such repository")
    assert message.startswith(f"{name}: ")


def test_a_recurrent_model_cannot_roll_back():
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(LoadError, match="MambaForCausalLM keeps a recurrent state that cannot be rolled back"):
        EagerModel(MambaForCausalLM(config))


def test_a_network_without_a_head():
    with pytest.raises(LoadError, match="T5Model has no language-model head"):
        EagerModel(T5Model(build("t5").config))
