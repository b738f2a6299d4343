"""Tiny checkpoints, data files and recipes that train in seconds."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bild.data import Data, Example
from bild.training import Recipe, Settings
from tests.networks import word_tokenizer

SHAPES = {
    "t5": "t5:d_model=32,d_kv=8,d_ff=64,num_layers=1,num_decoder_layers=2,num_heads=4",
    "gpt2": "gpt2:n_embd=32,n_layer=2,n_head=4,n_positions=64",
}
QUIET = {"dtype": "float32", "compile": False, "device": "cpu"}


def recipe(**changes: Any) -> Recipe:
    """A recipe of a few small batches."""
    return Recipe.preset("fast", **{"batch_tokens": 200, "max_steps": 12} | changes)


def settings(**changes: Any) -> Settings:
    return Settings(**{"save_minutes": 0.0, **QUIET} | changes)


def save_tokenizer(folder: Path) -> str:
    """Words ``w2`` … ``w39``."""
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def checkpoint(folder: Path, kind: str = "t5", seed: int = 0) -> str:
    """A random network with its tokenizer."""
    from bild.models import new_network
    from bild.training.start import for_tokenizer, parse_shape

    torch.manual_seed(seed)
    network = new_network(for_tokenizer(parse_shape(SHAPES[kind]), word_tokenizer()))
    network.save_pretrained(folder)
    return save_tokenizer(folder)


def words(ids: Sequence[int]) -> str:
    return " ".join(f"w{id}" for id in ids)


def copies(count: int, seed: int = 0, vocab_size: int = 20, longest: int = 6) -> list[dict[str, str]]:
    """Sources of 2 to ``longest`` different words and targets that are the same."""
    rng = Random(seed)
    texts = [words(rng.sample(range(2, vocab_size), rng.randint(2, longest))) for _ in range(count)]
    return [{"source": text, "target": text} for text in texts]


def data_of(rows: Sequence[dict[str, str]], name: str = "train") -> dict[str, Data]:
    examples = [Example(str(at), row["source"], (row["target"],)) for at, row in enumerate(rows, 1)]
    return {name: Data(name, examples)}


def write_lines(file: Path, rows: Sequence[dict[str, str]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    """Bit by bit."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def kill_in(run: Callable[[], object]) -> None:
    """Run in a process of its own that must end by SIGKILL."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork among threads
        child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def killing(function: Callable[..., Any], call: int, *, after: bool = False) -> Callable[..., Any]:
    """The function; its process is killed at the beginning, or the end, of this call of it."""
    calls = 0

    def killer(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return killer
