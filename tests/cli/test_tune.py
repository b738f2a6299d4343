"""bild tune, end to end on the bundled pair."""

from __future__ import annotations

import json
import sys

import pytest

from bild import Policy
from bild.cli import main, pair_options
from bild.generation import Pair
from bild.tuning import search
from tests.cli.test_evaluate import ROWS


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.fixture
def run(bundled, monkeypatch, capfd):
    """Run the program on the bundled pair and a small grid: ``run(…) -> (code, stdout, stderr)``."""
    monkeypatch.setattr(pair_options, "load_decoder", lambda **options: bundled)
    monkeypatch.setattr(search, "FALLBACK", (0.3, 0.6))
    monkeypatch.setattr(search, "ROLLBACK", (1.0, 4.0))
    monkeypatch.setattr(search, "REFINEMENTS", 0)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bild", "tune", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def test_the_tuned_policy_goes_into_the_pair(run, data, tmp_path):
    code, out, err = run("--data", data, "--budget", 100, "--out", tmp_path / "run", "--save", tmp_path / "p", "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    pair = Pair.load(tmp_path / "p")
    assert pair.policy.to_dict() == result["policy"] and "chosen: bild:fallback_threshold=" in out
    assert pair.evidence["dev"]["dev"]["texts"] == 4 and pair.evidence["tuned_for"].startswith("at most 100 BLEU")
    assert pair.policy in [point.policy for point in map(of, result["points"])]
    assert (tmp_path / "run" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert len(pair.evidence["large"]["sha256"]) == len(pair.evidence["small"]["sha256"]) == 16
    assert "32 policies on 4 texts" in err and f"written to {tmp_path / 'p'}" in err


class of:
    """A point of the result with its policy read back."""

    def __init__(self, point: dict) -> None:
        self.policy = Policy.from_dict(point["policy"])


def test_errors_are_one_line_and_exit_2(run, data, tmp_path):
    place = ("--out", tmp_path / "run")
    for arguments, says in (
        (["--data", data, "--budget", -1, *place], "budget is -1.0; allowed is 0 or more"),
        (["--data", data, "--task", "poetry", *place], "task is 'poetry'; allowed are translation, summarization"),
        (["--data", data, "--large", "a", "--small", "b", *place], "say where to write it with --save"),
        (["--data", tmp_path / "none.jsonl", *place], "none.jsonl"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and says in err and err.count("\n") == 1, err


def test_a_budget_that_nothing_meets_names_the_nearest_and_leaves_the_pair(
    run, bundled, sentences, tmp_path, monkeypatch
):
    """The references are the large model's own texts, and the only policy is the small model alone."""
    for name, values in (("FALLBACK", (0.0,)), ("ROLLBACK", (50.0,)), ("VERIFY_END", (False,))):
        monkeypatch.setattr(search, name, values)
    texts = bundled.generate(sentences[:6], "large")
    rows = [{"source": source, "target": result.text} for source, result in zip(sentences, texts, strict=False)]
    dev = tmp_path / "dev.jsonl"
    dev.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, _, err = run("--data", dev, "--budget", 0, "--out", tmp_path / "run", "--save", tmp_path / "p")
    assert code == 2 and not (tmp_path / "p").exists()
    nearest = "error: no policy loses at most 0 points; the nearest, bild:fallback_threshold=0:rollback_threshold=50"
    assert err.splitlines()[-1].startswith(nearest)
