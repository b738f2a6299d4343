"""bild draft on the command line."""

from __future__ import annotations

import pytest

from bild.training import Recipe, Settings, Shape
from tests.cli.test_training import run  # noqa: F401
from tests.training.tiny import copies, write_lines

OPTIONS = {
    "--layers": ("layers", "3"),
    "--choose": ("choose", "even"),
    "--encoder-layers": ("encoder_layers", "2"),
    "--head-vocabulary": ("head_vocabulary", "77"),
    "--texts": ("texts", "5"),
    "--temperature": ("temperature", "0.7"),
    "--write-dtype": ("write_dtype", "int8"),
    "--max-target-tokens": ("max_target_tokens", "9"),
    "--max-source-tokens": ("max_source_tokens", "8"),
    "--prefix": ("prefix", "say: "),
    "--epochs": ("epochs", "7"),
    "--max-steps": ("max_steps", "6"),
    "--lr": ("lr", "0.25"),
    "--batch-tokens": ("batch_tokens", "99"),
    "--distill": ("distill", "0.5"),
    "--seed": ("seed", "4"),
    "--device": ("device", "cpu"),
    "--dtype": ("dtype", "float32"),
    "--save-dtype": ("save_dtype", "bfloat16"),
    "--log-every": ("log_every", "8"),
    "--save-minutes": ("save_minutes", "1.5"),
    "--fresh": ("fresh", None),
    "--no-chat": ("chat", None),
    "--compile": ("compile", None),
}


@pytest.fixture
def asked(monkeypatch):
    """What the command calls, field by field."""
    found: dict[str, object] = {}

    def record(large, out, recipe, shape, *, data, settings, **options):
        assert isinstance(recipe, Recipe) and isinstance(shape, Shape) and isinstance(settings, Settings)
        found.update(vars_of(recipe) | vars_of(shape) | vars_of(settings) | options, data=data, large=large)

    monkeypatch.setattr("bild.training.drafting.draft", record)
    return found


def vars_of(value) -> dict[str, object]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__ if name != "arguments"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_arrives(run, asked, tmp_path, option):  # noqa: F811
    base = ("draft", "--large", "x", "--out", tmp_path / "out")
    assert run(*base)[0] == 0
    name, value = OPTIONS[option]
    before = asked.pop(name, None)
    code, err = run(*base, option, *([] if value is None else [value]))
    assert code == 0, err
    told = {"--no-chat": "False"}.get(option, "True") if value is None else value
    assert str(asked[name]) == told != str(before)


def test_without_more_it_learns_distributions_in_three_passes_and_writes_its_own_prompts(run, asked, tmp_path):  # noqa: F811
    assert run("draft", "--large", "x", "--out", tmp_path)[0] == 0
    assert (asked["epochs"], asked["distill"], asked["data"], asked["large"]) == (3, 1.0, None, "x")


def test_given_prompts_are_read_and_not_counted_by_texts(run, asked, tmp_path):  # noqa: F811
    data = write_lines(tmp_path / "asked.jsonl", copies(5))
    assert run("draft", "--large", "x", "--out", tmp_path, "--data", data)[0] == 0
    assert [len(each.examples) for each in asked["data"].values()] == [5]
    code, err = run("draft", "--large", "x", "--out", tmp_path, "--data", data, "--texts", 3)
    assert code == 2 and "--texts 3 counts prompts of the large model's own" in err
