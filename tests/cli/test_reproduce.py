"""bild reproduce, end to end on the bundled pair."""

from __future__ import annotations

import json
import sys

import pytest

from bild.cli import main, pair_options
from bild.reproduction import grids
from tests.cli.test_evaluate import ROWS


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.fixture
def run(bundled, monkeypatch, capfd):
    """Run the program on the bundled pair: ``run(…) -> (code, stdout, stderr)``; ``run.loaded`` are the options."""
    loaded = []
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: (loaded.append(options), bundled)[1])

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bild", "reproduce", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    run.loaded = loaded
    return run


def test_a_figure_of_the_bundled_pair(run, data, tmp_path):
    out = tmp_path / "out"
    how = ("--runtime", "eager", "--dtype", "float32")
    code, said, err = run("figure10", "--data", data, "--limit", 3, "--out", out, *how)
    assert code == 0 and said.startswith(f"figure10: {out / 'figure10.md'} after ") and said.count("\n") == 1, err
    values = json.loads((out / "figure10.json").read_text(encoding="utf-8"))
    assert values["inputs"]["data"]["test"]["test"]["texts"] == 3 and values["inputs"]["dtype"] == "float32"
    assert len(values["inputs"]["unaligned"]["large"]["sha256"]) == 16
    curves = values["values"]["sets"]["test"]
    assert [*curves] == ["large", *(f"rollback {far:g}" for far in grids.ROLLBACK)]
    # The largest fallback threshold is slower than the smallest on every curve.
    for far in grids.ROLLBACK:
        latencies = [point["normalised_latency"] for point in curves[f"rollback {far:g}"]]
        assert latencies[-1] > latencies[0]
    assert [options["dtype"] for options in run.loaded] == ["float32"]
    assert "looking up" in err


def test_options_reach_the_inputs(run, data, tmp_path):
    options = ["--dev", data, "--dev-limit", 2, "--limit", 2, "--seeds", "4,5", "--prefix", "a: ", "--aligned", "other",
               "--metric", "chrf", "--max-new-tokens", 9, "--runtime", "eager"]  # fmt: skip
    code, said, err = run("figure6", "--data", data, "--out", tmp_path / "out", *options)
    assert code == 0 and "not here: the whole figure (--exit-model FOLDER:LAYERS is not given)" in said, err
    inputs = json.loads((tmp_path / "out" / "figure6.json").read_text(encoding="utf-8"))["inputs"]
    assert inputs["data"]["dev"] == inputs["data"]["test"] and inputs["data"]["dev"]["test"]["texts"] == 2
    assert (inputs["seeds"], inputs["prefix"], inputs["metric"], inputs["max_new_tokens"]) == ([4, 5], "a: ", "chrf", 9)
    assert inputs["aligned"]["small"] == {"name": "other"} and inputs["runtime"] == "eager"


def test_errors_are_one_line_and_exit_2(run, data, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"source": "Hallo."}) + "\n", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    place = ("--out", tmp_path / "out")
    for arguments, says in (
        (["table2", "--data", data, *place], "item is 'table2'; allowed are table1, figure2"),
        (["figure4", "--data", bare, *place], "bare: example 1 has no reference"),
        (["figure4", "--data", data, "--out", tmp_path / "file"], "cannot write"),
        (["table1", "--data", data, *place], "table1 chooses its policies on dev data; give one --dev for each --data"),
        (["all", "--data", data, "--dev", data, "--dev", bare, *place], "--data is given 1 times and --dev 2 times"),
        (["figure4", "--data", data, "--seeds", "x", *place], "seeds are 'x'; allowed are whole numbers"),
        (["figure4", "--data", data, "--task", "poetry", *place], "task is 'poetry'"),
        (["figure6", "--data", data, "--exit-model", "folder", *place], "write FOLDER:LAYERS"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and says in err and err.count("\n") == 1, err
