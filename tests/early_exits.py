"""Tiny networks that are cut in two, once a test run."""

from __future__ import annotations

from functools import cache
from unittest.mock import patch

import torch
from transformers import PreTrainedModel

from bild import BigLittleDecoder
from bild.models import CompiledModel
from bild.models.compiled import compiling
from tests.networks import build

EXITING = ("t5", "mt5", "gpt2", "llama", "qwen2", "mistral")
STATIC = ("t5", "gpt2")
"""Those that are also compiled: the two whose upper layers need more than their hidden states."""
LAYERS = 4
EXIT = 2
"""Two layers below the exit and two or three above: in one, keys and values would not depend on the prefix."""
SMALLER = {"t5": {"layers": 2, "num_layers": 1}, "gpt2": {"layers": 3}}
"""Of those that are compiled: each layer takes seconds."""


@cache
def deep(name: str, runtime: str = "eager") -> PreTrainedModel:
    """A network to be cut, built once; nobody may change it."""
    if runtime == "eager":
        return build(name, layers=LAYERS)
    return build(name, dtype=torch.float32, **SMALLER[name])


@cache
def exit_pair(name: str, runtime: str) -> BigLittleDecoder:
    """The network and its first layers as a pair."""
    # As in tests.compiled: matrix products of Inductor's own cost ten seconds a graph.
    with patch.object(compiling, "TEMPLATES", compiling.LIBRARY):
        pair = BigLittleDecoder(deep(name, runtime), f"exit:{EXIT if runtime == 'eager' else 1}", runtime=runtime)
    assert isinstance(pair.large, CompiledModel) == (runtime == "static")
    return pair
