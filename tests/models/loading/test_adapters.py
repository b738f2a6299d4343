"""PEFT adapters: merged when they are loaded, refused before their base is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from bild import BigLittleDecoder, LoadError
from bild.models import load_config, load_network, load_tokenizer
from bild.models.loading import checkpoint
from tests.networks import build, forward, word_tokenizer

peft = pytest.importorskip("peft")
CPU = torch.device("cpu")
# peft is ahead of or behind transformers by a release, and says so.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def load(place):
    return load_network(place, dtype=torch.float32, device=CPU)


@pytest.fixture
def base(tmp_path) -> Path:
    build("llama", dtype=torch.float32).save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """A LoRA adapter that changes what its base writes."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(load(base), config)
    model.save_pretrained(tmp_path / "adapter")
    tokens = [2, 9, 4]
    torch.save(forward(model.eval(), [], tokens), tmp_path / "logits")
    return tmp_path / "adapter"


def change(adapter: Path, **values) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(place, message: str, monkeypatch) -> None:
    """Before any weight is read."""
    monkeypatch.setattr(checkpoint, "_read_network", lambda *_: pytest.fail("read the base"))
    with pytest.raises(LoadError, match=message) as caught:
        load(place)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_merged(adapter, base, tmp_path):
    merged = load(adapter)
    scored = forward(merged, [], [2, 9, 4])
    torch.testing.assert_close(scored, torch.load(tmp_path / "logits"), rtol=1e-4, atol=1e-4)
    assert (scored - forward(load(base), [], [2, 9, 4])).abs().max() > 0.01
    assert merged.state_dict().keys() == load(base).state_dict().keys()
    assert load_config(adapter).hidden_size == merged.config.hidden_size
    assert load_tokenizer(adapter).get_vocab() == word_tokenizer().get_vocab()


def test_a_pair_of_an_adapter_and_its_base(adapter, base):
    pair = BigLittleDecoder.from_pretrained(large=adapter, small=base, dtype="float32", runtime="eager")
    alone = BigLittleDecoder.from_pretrained(large=adapter, small=adapter, dtype="float32", runtime="eager")
    texts = ["w3 w4", "w5"]
    for one, other in zip(pair.generate(texts, "exact"), alone.generate(texts, "large"), strict=True):
        assert one.token_ids == other.token_ids


def test_a_base_named_from_the_adapters_folder(adapter, base, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = forward(load(adapter), [], [2])
    change(adapter, base_model_name_or_path="../base")
    monkeypatch.chdir(base)
    torch.testing.assert_close(forward(load(adapter), [], [2]), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model_name_or_path": "/no/such/base"}, "its base model is not there .no such folder: /no/such/base"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"peft_type": "PROMPT_TUNING"}, "a PROMPT_TUNING adapter changes no weights and cannot be merged"),
        ({"task_type": "SEQ_CLS"}, "an adapter for SEQ_CLS does not generate text"),
    ],
)
def test_an_adapter_that_cannot_be_used(adapter, monkeypatch, values, message):
    change(adapter, **values)
    refused(adapter, message, monkeypatch)


def test_an_adapter_of_an_adapter(adapter, tmp_path, monkeypatch):
    change(adapter, base_model_name_or_path=str(adapter))
    refused(adapter, "is an adapter too; merge that one first", monkeypatch)


def test_an_adapter_without_weights(adapter, monkeypatch):
    (adapter / "adapter_model.safetensors").unlink()
    refused(adapter, r"the adapter's weights are missing; adapter_model\.safetensors belongs beside", monkeypatch)


def test_a_damaged_config(adapter, monkeypatch):
    (adapter / "adapter_config.json").write_text("{")
    refused(adapter, r"adapter_config\.json cannot be read", monkeypatch)


def test_an_adapter_beside_a_whole_model(adapter, base, monkeypatch):
    (base / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    refused(base, "holds both a whole model and an adapter", monkeypatch)


def test_without_peft(adapter, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    refused(adapter, r"needs the package peft; run pip install 'bild\[adapters\]'", monkeypatch)


def test_an_adapter_of_another_model(adapter, tmp_path):
    build("llama", dtype=torch.float32, width=32).save_pretrained(tmp_path / "other")
    change(adapter, base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(LoadError, match=r"this adapter cannot be merged into .*other") as caught:
        load(adapter)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_a_deeper_model(base, tmp_path):
    """PEFT lays what it has over the layers that are there, and only warns of the rest."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(load(base), config).save_pretrained(tmp_path / "adapter")
    build("llama", dtype=torch.float32, layers=3).save_pretrained(tmp_path / "deep")
    change(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "deep"))
    with pytest.raises(LoadError, match="its weights are incomplete"):
        load(tmp_path / "adapter")
