"""The check of a GPU runs on any machine, and says what it left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_runs_on_a_cpu_one_json_line_a_block(tmp_path):
    out = tmp_path / "lines"
    blocks = ["environment", "step_llama", "waiting", "ratio", "draws"]
    command = [sys.executable, "benchmarks/gpu_check.py", "--device", "cpu", "--blocks", *blocks, "--out", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert result.returncode == 0, result.stderr
    assert [line["block"] for line in lines] == blocks
    assert [line.get("skipped") for line in lines] == [None, *["needs a GPU"] * 3, None]
    assert lines[0]["bandwidth_gb_s"] > 0
    # Three degrees of freedom: a right draw is above this once in ten thousand runs, and its numbers are fixed.
    assert lines[4]["chi_square_3"] < 21.1


def test_a_block_that_fails_or_takes_too_long_does_not_stop_the_others(monkeypatch, capsys):
    import gpu_check

    def breaks():
        raise ValueError("as planned")

    def sleeps():
        import time

        time.sleep(30)

    monkeypatch.setattr(gpu_check, "BLOCKS", {"a": (breaks, 5), "b": (sleeps, 1), "c": (lambda: {"fine": 1}, 5)})
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--device", "cpu"])
    assert gpu_check.main() == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["error"] == "ValueError: as planned"
    assert lines[1]["error"] == "not done after 1 s"
    assert lines[2]["fine"] == 1
