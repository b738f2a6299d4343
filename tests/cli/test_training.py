"""bild train and bild align, from the command line to the saved pair."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

import pytest

from bild.cli import main
from bild.training import Recipe, Settings
from tests.training.tiny import SHAPES, checkpoint, copies, weights, write_lines

PLAIN = ("--dtype", "float32", "--no-compile", "--max-steps", "3", "--batch-tokens", "300", "--threads", "1")


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program: ``run(…) -> (code, stderr)``."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bild", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capfd.readouterr().err

    return run


@pytest.fixture
def data(tmp_path):
    return write_lines(tmp_path / "train.jsonl", copies(60))


def test_from_texts_to_an_aligned_pair(run, data, tmp_path):
    large, small, out = tmp_path / "pair" / "large", tmp_path / "pair" / "small", tmp_path / "pair" / "aligned"
    made = ("--shape", SHAPES["gpt2"], "--new-tokenizer", "--vocab-size", 40)
    code, err = run("train", "--data", data, "--out", large, *made, *PLAIN)
    assert code == 0 and f"checkpoint in {large}" in err, err
    code, err = run("train", "--data", data, "--out", small, "--model", large, "--seed", 1, *PLAIN)
    assert code == 0, err
    pair = ("--large", large, "--small", small)
    code, err = run("align", *pair, "--data", data, "--out", out, "--max-target-tokens", 4, *PLAIN)
    assert code == 0 and (out / "labels.jsonl").exists(), err
    code, err = run("info", "--large", large, "--small", out)
    assert code == 0, err
    facts = json.loads((large / "training.json").read_text())
    assert facts["arguments"]["vocab_size"] == 40 and facts["recipe"]["max_steps"] == 3


OPTIONS = {
    "--max-steps": ("max_steps", "7"),
    "--epochs": ("epochs", "2"),
    "--batch-tokens": ("batch_tokens", "99"),
    "--batch-size": ("batch_size", "3"),
    "--lr": ("lr", "0.25"),
    "--warmup-steps": ("warmup_steps", "4"),
    "--label-smoothing": ("label_smoothing", "0.5"),
    "--dropout": ("dropout", "0.5"),
    "--distill": ("distill", "0.5"),
    "--trains": ("trains", "decoder"),
    "--seed": ("seed", "5"),
    "--metric": ("metric", "chrf"),
    "--eval-every": ("eval_every", "6"),
    "--patience": ("patience", "2"),
    "--log-every": ("log_every", "8"),
    "--save-minutes": ("save_minutes", "1.5"),
    "--prefix": ("prefix", "translate: "),
    "--chat": ("chat", None),
    "--max-source-tokens": ("max_source_tokens", "11"),
    "--max-target-tokens": ("max_target_tokens", "12"),
    "--device": ("device", "cpu"),
    "--dtype": ("dtype", "float32"),
    "--save-dtype": ("save_dtype", "bfloat16"),
    "--compile": ("compile", None),
    "--fresh": ("fresh", None),
}
NOBODY_TO_ASK = ("train", "--distill")


@pytest.mark.parametrize(
    ("command", "option"),
    [(command, option) for command in ("train", "align") for option in OPTIONS if (command, option) != NOBODY_TO_ASK],
)
def test_every_option_arrives(run, data, tmp_path, monkeypatch, command, option):
    seen = {}

    def record(*arguments, settings, **_):
        recipe = next(value for value in arguments if isinstance(value, Recipe))
        for part in (recipe, settings):
            seen.update({field.name: getattr(part, field.name) for field in fields(part)})

    monkeypatch.setattr(f"bild.training.{command}", record)
    name, value = OPTIONS[option]
    start = ("--model", "x") if command == "train" else ("--large", "x", "--small", "y")
    code, err = run(command, "--data", data, "--out", tmp_path / "out", *start, option, *([value] if value else []))
    assert code == 0, err
    preset = {field.name: field.default for field in fields(Settings)} | Recipe.preset("fast").to_dict()
    assert str(seen[name]) == (value or "True") != str(preset[name])


def test_a_loss_and_its_layer_arrive(run, data, tmp_path):
    model = checkpoint(tmp_path / "model")
    for loss in (("calm",), ("early-exit", "--exit-layer", "1")):
        out = tmp_path / loss[0]
        code, err = run("train", "--data", data, "--out", out, "--model", model, "--loss", *loss, *PLAIN)
        assert code == 0, err
    calm, early = weights(tmp_path / "calm"), weights(tmp_path / "early-exit")
    assert any((calm[name] != early[name]).any() for name in calm)


def test_errors_are_one_line_and_exit_2(run, data, tmp_path):
    empty = write_lines(tmp_path / "empty.jsonl", [{"source": " ", "target": ""}])
    columns = write_lines(tmp_path / "columns.jsonl", [{"de": "w2", "en": "w3"}])
    model = checkpoint(tmp_path / "model")
    other = checkpoint(tmp_path / "other", "gpt2")
    out = ("--out", tmp_path / "out")
    for arguments, says in (
        (["train", "--data", data, *out], "0 beginnings are given"),
        (["train", "--data", data, "--model", model, "--lr", -1, *out], "lr is -1.0; allowed is more than 0"),
        (["train", "--data", data, "--model", model, "--recipe", "best", *out], "recipe is 'best'"),
        (["train", "--data", data, "--model", model, "--vocab-size", 50, *out], "--vocab-size goes with"),
        (["train", "--data", data, "--model", model, "--threads", 0, *out], "threads is 0"),
        (["train", "--data", empty, "--model", model, *out], "holds no usable example"),
        (["train", "--data", columns, "--model", model, *out], "source"),
        (["train", "--data", tmp_path / "none.jsonl", "--model", model, *out], "none.jsonl"),
        (["train", "--data", data, "--model", tmp_path / "none", *out], "none"),
        (["train", "--data", data, "--model", model, "--loss", "calm", "--exit-layer", 1, *out], "exit_layer"),
        (["align", "--data", data, "--large", model, "--small", other, *out], "encoder-decoder"),
        (["align", "--data", data, "--large", model, "--small", "exit:1", *out], "--from"),
    ):
        code, err = run(*arguments)
        errors = [line for line in err.splitlines() if not line.startswith("data:")]
        assert code == 2 and says in err and len(errors) == 1, (arguments, err)
