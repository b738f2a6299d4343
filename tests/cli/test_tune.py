"""bild tune, end to end on the bundled pair."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import pytest

from bild import Policy
from bild.cli import main, pair_options
from bild.cli.tune import _not_settled
from bild.generation import Pair
from bild.tuning import Point, grid, search
from bild.tuning.confidence import Bound
from bild.tuning.judge import Judged, Verdict
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
    monkeypatch.setattr(grid, "FALLBACK", (0.3, 0.6))
    monkeypatch.setattr(grid, "ROLLBACK", (1.0, 4.0))
    monkeypatch.setattr(grid, "EXACT_FALLBACK", (0.3,))
    monkeypatch.setattr(grid, "EXACT_WINDOWS", (10,))
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
    place = ("--out", tmp_path / "run", "--save", tmp_path / "p")
    code, out, err = run("--data", data, "--budget", 100, "--no-confidence", *place, "--json")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    pair = Pair.load(tmp_path / "p")
    assert pair.policy.to_dict() == result["policy"] and "chosen: bild:fallback_threshold=" in out
    assert "on these very texts, among which it was chosen" in out and "no confidence" in pair.evidence["tuned_for"]
    assert pair.evidence["pays"] == ("this pair does not pay" not in out)
    assert pair.evidence["dev"]["dev"]["texts"] == 4 and pair.evidence["tuned_for"].startswith("at most 100 BLEU")
    assert pair.policy in [point.policy for point in map(of, result["points"])]
    assert (tmp_path / "run" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert len(pair.evidence["large"]["sha256"]) == len(pair.evidence["small"]["sha256"]) == 16
    assert "41 policies on 4 texts" in err and f"written to {tmp_path / 'p'}" in err


def test_prompts_alone(run, tmp_path):
    """The same rows without their targets: agreement with the large model is the quality, and is said."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"source": row["source"]}) + "\n" for row in ROWS), encoding="utf-8")
    place = ("--out", tmp_path / "run", "--save", tmp_path / "p")
    code, out, err = run("--data", file, "--metric", "perplexity", "--budget", 50, "--no-confidence", *place)
    assert code == 0, err
    evidence = Pair.load(tmp_path / "p").evidence
    assert evidence["tuned_for"].startswith("at most 50 percent more perplexity") and evidence["against"] == "large"
    figures = evidence["dev"]["prompts"]["agreement"]
    assert figures["perplexity"] >= 1 and figures["perplexity_change"] == pytest.approx(
        figures["perplexity"] / figures["perplexity_large"] - 1, abs=1e-3
    )
    assert "there are no references: quality is against the large model's own texts" in out
    assert f"prompts: 4 texts, {figures['same_tokens']:.1f} % of them the large model's own" in out
    code, _, err = run("--data", file, "--metric", "comet", *place)
    assert code == 2 and "metric is 'comet'; allowed are" in err


class of:
    """A point of the result with its policy read back."""

    def __init__(self, point: dict) -> None:
        self.policy = Policy.from_dict(point["policy"])


def test_errors_are_one_line_and_exit_2(run, data, tmp_path):
    place = ("--out", tmp_path / "run", "--save", tmp_path / "p")
    for arguments, says in (
        (["--data", data, "--budget", -1, *place], "budget is -1.0; allowed is a number of 0 or more"),
        (["--data", data, "--confidence", 90, *place], "confidence is 90.0; allowed is a number between 0.5 and 1"),
        (["--data", data, "--out", tmp_path], "the bundled pair is part of the installation and stays as it is; say"),
        (["--data", data, "--task", "poetry", *place], "task is 'poetry'; allowed are translation, summarization"),
        (["--data", data, "--large", "a", "--small", "b", *place[:2]], "say where to write it with --save"),
        (["--data", tmp_path / "none.jsonl", *place], "none.jsonl"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and says in err and err.count("\n") == 1, err


def test_too_few_texts_for_a_confidence_are_an_error_that_counts_them_and_leaves_the_pair(run, data, tmp_path):
    place = ("--out", tmp_path / "run", "--save", tmp_path / "p")
    code, out, err = run("--data", data, "--confidence", 0.9, *place)
    assert code == 2 and not (tmp_path / "p").exists()
    says = (
        r"error: too few dev texts to tell with confidence 0\.9 whether a policy loses at most 0\.3 points: dev lacks "
    )
    assert re.match(says + r"\d{3,} texts; only lossless policies .* the fastest exact:", err.splitlines()[-1]), err
    assert "it is lossless" in out
    result = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert not result["enough_texts"] and result["evidence"]["too_small_by"]["dev"] > 99
    # The same texts, the same folder: what was read is not read again.
    code, out, err = run("--data", data, "--no-confidence", *place)
    assert code == 0 and (tmp_path / "p").exists(), err


def test_what_is_not_settled_says_how_many_texts_would():
    """A faster policy that the proposing half hopes for: its bound, and what its sets lack."""
    point = Point(Policy.bild(), {}, {}, 1.0, 1.8)
    bounds = {"a": Bound(0.1, 0.7, 200), "b": Bound(0.5, 1.2, 200), "c": Bound(-2, -1.0, 200)}
    verdict = Verdict(0.9, [], {}, Judged(point, bounds, False), {"a": 1200, "b": None})
    lines = _not_settled(SimpleNamespace(verdict=verdict, confidence=0.9))
    assert "1.80 times as fast by prediction" in lines[0] and "at most 0.70 on a" in lines[0]
    assert lines[1] == "a: 1200 more texts would settle that it keeps the budget, if it goes on to lose 0.10"
    assert lines[2] == "b: it loses 0.50, so more texts would not settle that it keeps the budget"
