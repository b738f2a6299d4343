"""The folder for the hub, and the page that explains the door."""

from __future__ import annotations

import copy
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from bild import InputError, Stats
from tests.generation.transformers.doors import (
    EXACT,
    LENGTH,
    Recorder,
    every_architecture,
    inputs_of,
    large_of,
    new_tokens,
    plain,
    small_of,
    tokenizer_of,
)

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def published(tmp_path, monkeypatch) -> str:
    """The folder as the hub would hold it, with transformers' copies of it in a folder of this test."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    return str(REPOSITORY / "hub")


@every_architecture
def test_the_published_folder(published, name):
    streamer, tokenizer = Recorder(), tokenizer_of()
    word = f"w{new_tokens(name, 1)[4]}"
    output = plain(
        name,
        custom_generate=published,
        trust_remote_code=True,
        assistant_model=small_of(name),
        policy=EXACT,
        streamer=streamer,
        tokenizer=tokenizer,
        stop_strings=[word],
        return_dict_in_generate=True,
    )
    theirs = Recorder()
    expected = plain(name, stop_strings=[word], tokenizer=tokenizer, streamer=theirs)
    assert torch.equal(output.sequences, expected) and streamer.calls == theirs.calls
    assert Stats.total(result.stats for result in output.bild_results).num_rollbacks > 0
    with pytest.raises(InputError, match="small is missing"):
        plain(name, custom_generate=published, trust_remote_code=True)


def test_a_checkpoint_that_comes_with_the_folder_does_not_call_itself(published):
    """transformers puts the folder's function where such a model's generate() was."""
    file = Path(published) / "custom_generate" / "generate.py"
    spec = importlib.util.spec_from_file_location("published_generate", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    large = copy.deepcopy(large_of("llama"))
    large.generate = module.generate
    texts = large.generate(large, small_of("llama"), "exact", max_new_tokens=LENGTH, **inputs_of("llama"))
    assert torch.equal(texts, plain("llama"))


def test_the_page_runs(capsys):
    page = (REPOSITORY / "docs" / "custom-generate.md").read_text(encoding="utf-8")
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "['What time is it?', 'The man is reading a book.']"
    assert "small" in lines[1] and lines[-1].endswith("book.")
