"""--small exit:N on every command."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from bild import BigLittleDecoder, LoadError
from bild.cli import main, pair_options
from bild.cli.warmup import warmup
from bild.generation import bundled_pair
from bild.models import CompiledModel
from bild.models.compiled import compiling
from tests.early_exits import deep, exit_pair

TWO = ["Ich habe Hunger.", "Ein Junge mit Kopfhörern sitzt auf den Schultern einer Frau."]
EAGER = ("--runtime", "eager", "--dtype", "float32", "--device", "cpu")


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the program: ``run("generate", …) -> (code, stdout, stderr)``."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bild", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def folder(tmp_path):
    """A pair whose small checkpoint is of no use to anybody."""
    shutil.copytree(bundled_pair() / "large", tmp_path / "large")
    (tmp_path / "small").mkdir()
    return tmp_path


def test_generate_needs_no_second_checkpoint(run, bundled, folder):
    expected = "".join(f"{result.text}\n" for result in bundled.generate(TWO, "large"))
    for names in (("--large", folder / "large"), ("--pair", folder)):
        code, out, err = run("generate", *TWO, *names, "--small", "exit:6", "--policy", "exact", "--stats", *EAGER)
        assert (code, out) == (0, expected)
        assert "large and" in err


def test_a_pair_file_names_an_exit(run, bundled, folder):
    (folder / "bild.json").write_text(json.dumps({"large": "large", "small": "exit:6"}))
    code, out, _ = run("generate", TWO[0], "--pair", folder, "--policy", "exact", *EAGER)
    assert (code, out.strip()) == (0, bundled.generate(TWO[0], "large")[0].text)


def test_info_describes_the_exit_and_measures_what_a_draft_step_costs(run, folder):
    code, out, _ = run("info", "--large", folder / "large", "--small", "exit:6", "--json", *EAGER)
    facts = json.loads(out)
    assert (code, facts["small"]["name"], facts["small"]["decoder_layers"]) == (0, "exit:6", 6)
    assert facts["large"]["decoder_layers"] == 8
    assert facts["small"]["parameters"] < facts["large"]["parameters"]
    assert facts["small"]["encoder_layers"] == facts["large"]["encoder_layers"]
    assert 0.4 < facts["cost_ratio"] < 1.1


def test_evaluate(run, folder, tmp_path):
    rows = [{"source": text, "target": "I am hungry."} for text in TWO]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, err = run(
        "evaluate", "--data", tmp_path / "news.jsonl", "--large", folder / "large", "--small", "exit:6", "--json",
        "--methods", "large,exact,small,transformers-assisted", "--no-memory", "--warm-up", 0, "--resamples", 20,
        "--out", tmp_path / "out", *EAGER,
    )  # fmt: skip
    texts = {}
    for line in (tmp_path / "out" / "outputs.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts.setdefault(row["method"], []).append(row["text"])
    assert code == 0 and texts["exact"] == texts["large"] != texts["small"]
    assert "small is exit:6, which transformers cannot be assisted by; name a small checkpoint" in out + err


@pytest.mark.parametrize(
    ("small", "message"),
    [
        ("exit:8", "small is exit:8, but {large} has 8 decoder layers; allowed is exit:1 to exit:7"),
        ("exit:", "an early exit is 'exit:'; write exit:N, the first N decoder layers of the large model"),
    ],
)
def test_what_is_no_exit_is_one_line_and_code_2(run, folder, small, message):
    code, out, err = run("generate", TWO[0], "--large", folder / "large", "--small", small, *EAGER)
    assert (code, out, err) == (2, "", f"error: {message.format(large=folder / 'large')}\n")


@pytest.mark.compiles
def test_warmup_compiles_it_and_auto_runs_it_compiled(monkeypatch, capsys):
    network, pair = deep("gpt2", "static"), exit_pair("gpt2", "static")
    before = compiling.compilations
    auto = BigLittleDecoder(network, "exit:1", runtime="auto")
    assert isinstance(auto.large, CompiledModel) and auto.large.is_compiled and auto.small.is_compiled
    assert not isinstance(BigLittleDecoder(network, "exit:2", runtime="auto").large, CompiledModel)
    assert compiling.compilations == before
    monkeypatch.setattr(compiling, "compilations", 0)
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: pair)
    warmup()
    assert "all compiled already; loaded in " in capsys.readouterr().out
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: exit_pair("gpt2", "eager"))
    with pytest.raises(LoadError, match="GPT2LMHeadModel could not be compiled; it runs with --runtime eager"):
        warmup()
