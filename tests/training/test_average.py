"""The example that averages checkpoints."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from tests.training.tiny import checkpoint, weights

SCRIPT = Path(__file__).parents[2] / "examples" / "average_checkpoints.py"


def average(out: Path, shares: dict[str, float]) -> None:
    runpy.run_path(str(SCRIPT))["average"](str(out), shares)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_the_average_of_two_checkpoints(tmp_path, kind):
    places = [checkpoint(tmp_path / str(seed), kind, seed) for seed in (0, 1)]
    average(tmp_path / "out", {places[0]: 3, places[1]: 1})
    (one, other), found = (weights(Path(place)) for place in places), weights(tmp_path / "out")
    assert found.keys() == one.keys()
    for name, weight in found.items():
        assert torch.allclose(weight, 0.75 * one[name] + 0.25 * other[name], atol=1e-6), name
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (tmp_path / "0" / "tokenizer.json").read_text()
