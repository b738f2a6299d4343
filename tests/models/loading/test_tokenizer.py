"""The tokenizer of a checkpoint, and what its kind needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bild import LoadError
from bild.models import load_tokenizer
from tests.networks import ARCHITECTURES, VOCAB_SIZE, build, word_tokenizer

WORDS = ["<pad>", "</s>", *(f"w{id}" for id in range(2, VOCAB_SIZE))]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint of a tiny Llama with two layers."""
    build("llama", dtype=torch.float32).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_checkpoint_without_tokenizer(tmp_path, name):
    build(name, dtype=torch.float32).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path) is None


def test_tokenizer_of_a_checkpoint(folder):
    word_tokenizer().save_pretrained(folder)
    assert load_tokenizer(folder).get_vocab() == {word: id for id, word in enumerate(WORDS)}
    with pytest.raises(LoadError, match="no such folder"):
        load_tokenizer(folder / "none")


def test_a_damaged_tokenizer(folder):
    word_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_tokenizer(folder)
