"""What the name of a checkpoint stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bild import BigLittleDecoder, LoadError
from bild.models import load_config, load_network, load_tokenizer
from bild.models.loading.place import Place, find
from tests.networks import build, word_tokenizer

OLD, NEW = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("gpt2", ("gpt2", None, "", None)),
        ("some/repo", ("some/repo", None, "", None)),
        ("some/repo@v1.0", ("some/repo", "v1.0", "", None)),
        ("some/repo@refs/pr/3", ("some/repo", "refs/pr/3", "", None)),
        ("some/repo:small", ("some/repo", None, "small", None)),
        ("some/repo@v1:of/two", ("some/repo", "v1", "of/two", None)),
        ("some/repo:X-Q4_K_M.gguf", ("some/repo", None, "", "X-Q4_K_M.gguf")),
        ("some/repo@v1:q4/X.gguf", ("some/repo", "v1", "q4", "X.gguf")),
    ],
)
def test_names_of_the_hub(name, place):
    assert find(name) == Place(name, *place)


def test_a_name_goes_before_what_is_given_beside_it():
    assert find("a/b", revision="v2", subfolder="x") == Place("a/b", "a/b", "v2", "x")
    assert find("a/b@v1:y", revision="v2", subfolder="x") == Place("a/b@v1:y", "a/b", "v1", "y")


@pytest.mark.parametrize("name", ["a b", "a/b/c", "a/b@", "a/b:", "@v1", ":x", "a/b@v1@v2", "./a:b", "~/x"])
def test_names_of_nothing(name):
    with pytest.raises(LoadError, match="no such folder: "):
        find(name)


def test_a_folder_in_a_folder(tmp_path):
    build("gpt2").save_pretrained(tmp_path / "small")
    expected = str(tmp_path / "small")
    assert find(f"{tmp_path}:small").root == find(tmp_path, subfolder="small").root == find(expected).root == expected
    with pytest.raises(LoadError, match=r"no such folder: .*large"):
        find(tmp_path, subfolder="large")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder of the hub's client with a repository of two revisions, the older with folders in it."""
    repository = tmp_path / "hub" / "models--some--pair"
    for commit, layers, folder in ((OLD, 1, "large"), (OLD, 2, "small"), (NEW, 3, "")):
        place = repository / "snapshots" / commit / folder
        build("llama", dtype=torch.float32, layers=layers).save_pretrained(place)
        word_tokenizer().save_pretrained(place)
    for ref, commit in (("main", NEW), ("v1", OLD)):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / ref).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def layers_of(name: str, **where: str) -> int:
    network = load_network(name, dtype=torch.float32, device=torch.device("cpu"), **where)
    assert load_config(name, **where).num_hidden_layers == len(network.model.layers)
    assert load_tokenizer(name, **where).get_vocab() == word_tokenizer().get_vocab()
    return len(network.model.layers)


def test_revisions_and_subfolders(hub):
    assert layers_of("some/pair") == 3
    assert layers_of("some/pair@v1:large") == 1
    assert layers_of("some/pair", revision="v1", subfolder="small") == 2
    assert layers_of(f"some/pair@{OLD}", subfolder="small") == 2


def test_a_pair_in_one_repository(hub):
    names = {"large": "some/pair:large", "small": "some/pair:small"}
    pair = BigLittleDecoder.from_pretrained(**names, revision="v1", runtime="eager")
    assert [len(model.network.model.layers) for model in (pair.large, pair.small)] == [1, 2]
    other = BigLittleDecoder.from_pretrained(large="some/pair", small="some/pair@v1:small", runtime="eager")
    assert [len(model.network.model.layers) for model in (other.large, other.small)] == [3, 2]


@pytest.mark.parametrize("name", ["some/pair@v2", "some/pair:none", "some/pair@v1"])
def test_what_the_repository_does_not_have(hub, name):
    with pytest.raises(LoadError, match=f"{name}: ") as caught:
        load_config(name)
    assert "\n" not in str(caught.value)


def test_pickled_weights_of_a_repository(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "cache"))
    snapshot = hub / "snapshots" / NEW
    saved = build("llama", dtype=torch.float32, layers=3)
    torch.save(saved.state_dict(), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    assert layers_of("some/pair") == 3
