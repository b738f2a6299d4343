"""States a killed run goes on from."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from bild.errors import InputError
from bild.training import checkpoint
from bild.training.checkpoint import LOG, PROVENANCE, Resumed, RunFolder, State
from bild.training.optimizer import make_optimizer
from tests.networks import build, word_tokenizer
from tests.training.test_optimizer import step
from tests.training.tiny import kill_in, killing, recipe, same_weights

SETTINGS = {"recipe": {"lr": 0.1}, "data": "x"}


@pytest.mark.parametrize("optimizer", ["muon", "adafactor"])
def test_a_restored_run_goes_on_as_if_never_stopped(tmp_path, optimizer):
    chosen = recipe(lr=1e-2, optimizer=optimizer)
    network = build("llama", dtype=torch.float32)
    # Small embeddings, so that their rate follows from their size.
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(0.1)
    going = make_optimizer(network, chosen)
    for _ in range(2):
        step(network, going)
    RunFolder(tmp_path, SETTINGS).save_state(network, word_tokenizer(), going, State(step=2), {})
    drawn = torch.rand(3)

    resumed = Resumed.newest(RunFolder(tmp_path, SETTINGS))
    other = copy.deepcopy(network)
    restored = make_optimizer(other, chosen)
    resumed.restore_optimizer(restored)
    resumed.restore_random_numbers()
    assert torch.equal(torch.rand(3), drawn) and resumed.state == State(step=2)
    for _ in range(2):
        step(network, going)
        step(other, restored)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(network.parameters(), other.parameters(), strict=True))


def test_a_kill_leaves_the_state_before_or_the_one_after(tmp_path, monkeypatch):
    network, tokenizer = build("t5", dtype=torch.float32), word_tokenizer()
    optimizer = make_optimizer(network, recipe(lr=1e-2))
    folder = RunFolder(tmp_path, SETTINGS)

    def save(number: int) -> None:
        folder.save_state(network, tokenizer, optimizer, State(step=number), {})

    points = [
        (checkpoint, "save_file", False, "before"),
        (checkpoint, "_write_json", False, "before"),
        (checkpoint, "_write_json", True, "before"),
        (checkpoint.Path, "rename", False, "before"),
        (checkpoint.Path, "rename", True, "after"),
        (checkpoint.shutil, "rmtree", True, "after"),
    ]
    for number, (place, name, after, left) in enumerate(points):
        save(10 * number)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, killing(getattr(place, name), 1, after=after))
            kill_in(partial(save, 10 * number + 1))
        resumed = Resumed.newest(RunFolder(tmp_path, SETTINGS))
        assert resumed.state.step == 10 * number + (left == "after"), name
        assert not list(tmp_path.glob("*.partial"))
    save(99)
    assert [place.name for place in tmp_path.glob("step-*")] == ["step-99"]


def test_a_result_is_replaced_file_by_file(tmp_path):
    folder, tokenizer = RunFolder(tmp_path, SETTINGS), word_tokenizer()
    first, second = build("t5", dtype=torch.float32), build("t5", seed=1, dtype=torch.float32)
    folder.save_result(first, tokenizer, {"state": {"step": 1}})
    first.save_pretrained(tmp_path / "first")
    assert same_weights(tmp_path, tmp_path / "first")
    folder.save_result(second, tokenizer, {"state": {"step": 2}})
    second.save_pretrained(tmp_path / "second")
    assert same_weights(tmp_path, tmp_path / "second") and not same_weights(tmp_path, tmp_path / "first")
    assert json.loads((tmp_path / PROVENANCE).read_text())["state"]["step"] == 2
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "tokenizer.json", "run.json"}


def test_other_settings_are_refused_and_fresh_begins_anew(tmp_path):
    folder = RunFolder(tmp_path, SETTINGS)
    folder.log({"step": 1})
    other = {"recipe": {"lr": 0.2}, "data": "x"}
    with pytest.raises(InputError, match=r"other settings: recipe.lr is 0.1 there and 0.2 here; .* --fresh"):
        RunFolder(tmp_path, other)
    (tmp_path / "step-5").mkdir()
    fresh = RunFolder(tmp_path, other, fresh=True)
    assert fresh.newest() is None and not (tmp_path / LOG).exists()


def test_the_log_forgets_steps_that_are_taken_again(tmp_path):
    folder = RunFolder(tmp_path, SETTINGS)
    for number in (1, 2, 3):
        folder.log({"step": number})
        folder.log({"step": number, "metric": "bleu"})
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 1')
    folder.forget_log_after(State(step=2, scores=[{"step": 1}]))
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(line["step"], "metric" in line) for line in lines] == [(1, False), (1, True), (2, False)]


def test_a_damaged_state_is_told(tmp_path):
    (tmp_path / "step-3").mkdir()
    (tmp_path / "step-3" / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"step-3 is damaged \(ValueError: not JSON\); start anew with --fresh"):
        Resumed.newest(RunFolder(tmp_path, SETTINGS))


def test_a_full_disk_keeps_the_state_before(tmp_path):
    """A limit on the size of files fails in the write itself, as a full disk does."""
    code = f"""
import resource, torch
from pathlib import Path
from tests.training.test_checkpoint import SETTINGS, RunFolder, State, build, make_optimizer, recipe, word_tokenizer
network = build("t5", dtype=torch.float32, width=64)
folder, optimizer = RunFolder(Path({str(tmp_path)!r}), SETTINGS), make_optimizer(network, recipe(lr=0.1))
folder.save_state(network, word_tokenizer(), optimizer, State(step=1), {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    folder.save_state(network, word_tokenizer(), optimizer, State(step=2), {{}})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.startswith(f"InputError cannot write {tmp_path} (")
    assert "make room and run the same command again: it goes on" in done.stdout
    assert Resumed.newest(RunFolder(tmp_path, SETTINGS)).state.step == 1
