"""bild warmup compiles once; from then on auto means static."""

from __future__ import annotations

import pytest
import torch

from bild import BigLittleDecoder, LoadError
from bild.cli.warmup import warmup
from bild.models import CompiledModel, EagerModel
from bild.models.compiled import compiling
from tests.networks import build


@pytest.fixture
def pair(tmp_path, fresh_cache) -> dict[str, str]:
    """One tiny checkpoint on both sides, and a cache folder without graphs."""
    build("gpt2", dtype=torch.float32).save_pretrained(tmp_path / "model")
    return {"large": str(tmp_path / "model"), "small": str(tmp_path / "model")}


@pytest.mark.compiles
def test_what_is_warmed_up_is_compiled_once_and_then_used_by_auto(pair, fresh_cache, capsys, monkeypatch):
    monkeypatch.setattr(compiling, "TEMPLATES", compiling.LIBRARY)
    monkeypatch.setattr(compiling, "compilations", 0)
    before = BigLittleDecoder.from_pretrained(**pair, dtype="float32")
    assert type(before.large) is EagerModel
    warmup(**pair, dtype="float32")
    # The same weights on both sides are one graph.
    assert capsys.readouterr().out.startswith("compiled 1 graphs in ")
    assert len(list((fresh_cache / "compiled").glob("GPT2LMHeadModel-*-read.pt2"))) == 1
    monkeypatch.setattr(compiling, "compilations", 0)
    warmup(**pair, dtype="float32")
    assert "all compiled already; loaded in " in (said := capsys.readouterr().out)
    assert f"kept in {fresh_cache / 'compiled'}" in said
    after = BigLittleDecoder.from_pretrained(**pair, dtype="float32", runtime="auto")
    assert type(after.large) is CompiledModel and after.large.is_compiled and after.small.is_compiled
    assert compiling.compilations == 0
    assert after.generate([[5, 6, 7]], "exact", max_new_tokens=9)[0].token_ids == (
        before.generate([[5, 6, 7]], "exact", max_new_tokens=9)[0].token_ids
    )
    assert type(BigLittleDecoder.from_pretrained(**pair, dtype="float64").large) is EagerModel


def test_what_cannot_be_compiled_is_an_error_here(pair, monkeypatch):
    def refuse(*_):
        raise RuntimeError("not now")

    monkeypatch.setattr(compiling, "_compile", refuse)
    with pytest.raises(LoadError, match="GPT2LMHeadModel could not be compiled; it runs with --runtime eager"):
        warmup(**pair, dtype="float32")
