"""Pairs are compared before a weight is read or a graph compiled, and quantised weights refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

import bild.generation.decoder as generation
from bild import BigLittleDecoder, BildError, InputError, LoadError, VocabularyError
from bild.models import check_shared_vocabulary, load_network
from bild.models.loading import checkpoint, hardware
from tests.networks import VOCAB_SIZE, build, shared, word_tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def folders(tmp_path) -> Path:
    for name in ("llama", "gpt2", "t5"):
        build(name, dtype=torch.float32).save_pretrained(tmp_path / name)
        word_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path


def refused(kind: type[BildError], message: str, monkeypatch, **options) -> None:
    monkeypatch.setattr(checkpoint, "_read_network", lambda *_: pytest.fail("read weights"))
    with pytest.raises(kind, match=message) as caught:
        BigLittleDecoder.from_pretrained(**options)
    assert "\n" not in str(caught.value)


def quantise(folder: Path, **note) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": note}))


def test_what_does_not_make_a_pair_is_refused_before_weights(folders, monkeypatch):
    pair = {"large": folders / "llama", "small": folders / "gpt2"}
    refused(InputError, "runtime is 'warp'", monkeypatch, **pair, runtime="warp")
    refused(InputError, "dtype is 'fp32'", monkeypatch, **pair, dtype="fp32")
    other = {"large": folders / "llama", "small": folders / "t5"}
    refused(LoadError, "the large model is decoder-only and the small one encoder-decoder", monkeypatch, **other)
    exits = {"large": folders / "llama", "small": "exit:2"}
    refused(LoadError, "has 2 decoder layers; allowed is exit:1 to exit:1", monkeypatch, **exits)
    missing = {"large": folders / "llama", "small": folders / "none"}
    refused(LoadError, "no such folder", monkeypatch, **missing)
    word_tokenizer([f"v{id}" for id in range(VOCAB_SIZE)]).save_pretrained(folders / "gpt2")
    refused(VocabularyError, "the vocabularies differ in 40 ids", monkeypatch, **pair)


def test_heads_that_cannot_be_compared(folders, monkeypatch):
    build("gpt2", dtype=torch.float32, vocab_size=48).save_pretrained(folders / "wide")
    pair = {"large": folders / "llama", "small": folders / "wide"}
    refused(VocabularyError, "heads have 40 and 48 rows", monkeypatch, **pair)


def test_nothing_is_prepared_for_two_that_do_not_match(monkeypatch):
    monkeypatch.setattr(generation, "run_pair", lambda *_: pytest.fail("prepared"))
    with pytest.raises(VocabularyError, match="heads have 48 and 40 rows"):
        BigLittleDecoder(build("gpt2", vocab_size=48), shared("gpt2"), runtime="static")
    with pytest.raises(LoadError, match="use two of one kind"):
        BigLittleDecoder(shared("gpt2"), shared("t5"), runtime="static")


def test_a_pair_too_large_for_the_device(folders, monkeypatch):
    monkeypatch.setattr(checkpoint, "LITTLE", 0)
    llama, gpt2 = (sum(weight.numel() for weight in build(name).parameters()) * 4 for name in ("llama", "gpt2"))
    pair = {"large": folders / "llama", "small": folders / "gpt2", "dtype": "float32"}
    monkeypatch.setattr(hardware, "memory_of", lambda device: llama + gpt2)
    BigLittleDecoder.from_pretrained(**pair, runtime="eager")
    monkeypatch.setattr(hardware, "memory_of", lambda device: llama + gpt2 - 1)
    refused(LoadError, "bild keeps a pair on one device", monkeypatch, **pair)


@pytest.mark.parametrize(
    ("note", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes_4bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes_8bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "of tomorrow"}, "of tomorrow"),
        ({"bits": 4}, "unknown"),
    ],
)
def test_quantised_weights_this_machine_cannot_use(folders, monkeypatch, note, method):
    quantise(folders / "llama", **note)
    message = rf"llama: its weights are quantised \({method}\), which cannot be loaded on cpu here \("
    refused(LoadError, message, monkeypatch, large=folders / "llama", small=folders / "gpt2", device="cpu")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_rounding_quantised_weights(folders, monkeypatch, dtype):
    quantise(folders / "llama", quant_method="fp8")
    pair = {"large": folders / "llama", "small": folders / "gpt2"}
    refused(
        InputError,
        rf"dtype is {dtype}, but the weights of .*llama are quantised already",
        monkeypatch,
        **pair,
        dtype=dtype,
    )
    with pytest.raises(LoadError, match=r"quantised \(fp8\) and cannot be trained"):
        load_network(folders / "llama", dtype=torch.float32, device=CPU, trainable=True)


def test_a_network_that_cannot_be_moved(folders, monkeypatch):
    def refuse(*_):
        raise ValueError("`.to` is not supported for\nsuch models")

    monkeypatch.setattr("transformers.PreTrainedModel.to", refuse)
    with pytest.raises(LoadError, match=r"llama: cannot be put on cpu \(ValueError: `\.to` is not supported for\)$"):
        load_network(folders / "llama", dtype=torch.float32, device=CPU)


def test_a_quarter_of_a_million_pieces():
    """Gemma's vocabulary, in seconds of the processor."""
    tokenizer = word_tokenizer([f"piece{id}" for id in range(262_144)])
    start = time.process_time()
    assert check_shared_vocabulary(tokenizer, tokenizer, 262_144, 262_144) == 262_144
    assert time.process_time() - start < 2
