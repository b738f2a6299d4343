"""pytorch_model.bin: read as weights only, converted once, seen anew when it changes."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bild import LoadError
from bild.models import load_network
from bild.models.loading import pickled, prepared
from tests.networks import build

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def load(place):
    return load_network(place, dtype=torch.float32, device=CPU)


def refused(place, message: str) -> None:
    with pytest.raises(LoadError, match=message) as caught:
        load(place)
    assert "\n" not in str(caught.value)


def pickle_weights(folder: Path, weights: dict[str, Tensor], files: int = 1) -> None:
    """Write weights as transformers did before version 5, and take the safetensors away."""
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    names = (
        [f"pytorch_model-{n + 1:05}-of-{files:05}.bin" for n in range(files)] if files > 1 else ["pytorch_model.bin"]
    )
    held = {key: names[n % files] for n, key in enumerate(weights)}
    for name in names:
        torch.save({key: value for key, value in weights.items() if held[key] == name}, folder / name)
    if files > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": held}))


@pytest.fixture
def checkpoint(tmp_path):
    """A network with tied embeddings, and a folder that has its weights in a pickle."""
    network = build("t5", dtype=torch.float32)
    network.lm_head.weight = network.shared.weight
    network.generation_config.max_new_tokens = 17
    network.save_pretrained(tmp_path / "t5")
    pickle_weights(tmp_path / "t5", network.state_dict())
    return network, tmp_path / "t5"


def equal(one, other) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)


def test_a_pickled_checkpoint_is_the_one_that_was_saved(checkpoint, cache):
    network, folder = checkpoint
    before = sorted(folder.iterdir())
    loaded = load(folder)
    equal(network, loaded)
    assert loaded.generation_config.max_new_tokens == 17
    assert sorted(folder.iterdir()) == before
    assert [file.suffix for file in cache.rglob("model*")] == [".safetensors"]


def test_it_is_converted_once(checkpoint, monkeypatch):
    _, folder = checkpoint
    load(folder)
    monkeypatch.setattr(pickled, "_convert", lambda *_: pytest.fail("converted again"))
    load(folder)


def test_a_changed_pickle_is_seen_and_the_old_copy_goes(checkpoint, cache):
    _, folder = checkpoint
    load(folder)
    other = build("t5", seed=1, dtype=torch.float32)
    other.lm_head.weight = other.shared.weight
    size = (folder / "pytorch_model.bin").stat().st_size
    pickle_weights(folder, other.state_dict())
    assert (folder / "pytorch_model.bin").stat().st_size == size
    os.utime(folder / "pytorch_model.bin", ns=(1, 1))
    equal(other, load(folder))
    assert len(list(cache.iterdir())) == 1


def test_a_pickle_in_several_files(tmp_path, cache):
    network = build("llama", dtype=torch.float32)
    network.save_pretrained(tmp_path / "llama")
    pickle_weights(tmp_path / "llama", network.state_dict(), files=3)
    equal(network, load(tmp_path / "llama"))
    assert len(list(cache.rglob("model-*-of-00003.safetensors"))) == 3


def test_one_of_several_files_is_missing(tmp_path):
    network = build("llama", dtype=torch.float32)
    network.save_pretrained(tmp_path)
    pickle_weights(tmp_path, network.state_dict(), files=3)
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    refused(tmp_path, r"pytorch_model-00002-of-00003\.bin is missing, which pytorch_model\.bin\.index\.json names")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index(checkpoint, text):
    _, folder = checkpoint
    (folder / "pytorch_model.bin.index.json").write_text(text)
    refused(folder, r"pytorch_model\.bin\.index\.json cannot be read")


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_code_in_a_pickle_is_not_run(checkpoint, monkeypatch, tmp_path, cache):
    _, folder = checkpoint
    monkeypatch.chdir(tmp_path)
    torch.save({"shared.weight": Attack()}, folder / "pytorch_model.bin")
    refused(folder, "it asks for code to be run.*save_pretrained")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"shared.weight": Attack()}))
    refused(folder, r"pytorch_model\.bin cannot be read as weights.*save_pretrained")
    assert not Path("attacked").exists() and list(cache.iterdir()) == []


def test_a_damaged_pickle(checkpoint):
    _, folder = checkpoint
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"{}", (8).to_bytes(8, "little") + b'{"a": 1}' + bytes(64)):
        file.write_bytes(content)
        refused(folder, r"pytorch_model\.bin cannot be read as weights.*save_pretrained")


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}, {}, torch.zeros(3)])
def test_a_pickle_without_weights(checkpoint, content):
    _, folder = checkpoint
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder, r"pytorch_model\.bin holds no weights")


def test_safetensors_are_read_where_both_are(checkpoint):
    network, folder = checkpoint
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    network.save_pretrained(folder)
    equal(network, load(folder))


def test_a_full_disk(checkpoint, monkeypatch, cache):
    _, folder = checkpoint
    monkeypatch.setattr(prepared.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 10, 0))
    refused(folder, r"converting it failed in .*the disk is full; free 0\.0 GB there, or set BILD_CACHE")


def test_the_disk_fills_up_on_the_way(checkpoint, monkeypatch, cache):
    _, folder = checkpoint

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pickled, "save_file", full)
    refused(folder, "the disk is full")
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(checkpoint, monkeypatch, tmp_path):
    _, folder = checkpoint
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "file"))
    refused(folder, "converting it failed in .*set BILD_CACHE to a folder that can be written")
