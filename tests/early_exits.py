"""Tiny networks that are cut in two, once a test run."""

from __future__ import annotations

from functools import cache

import torch
from transformers import PreTrainedModel

from bild import BigLittleDecoder
from tests.networks import build

EXITING = ("t5", "mt5", "gpt2", "llama", "qwen2", "mistral")
STATIC: tuple[str, ...] = ()
"""Those that are also compiled."""
LAYERS = 4
EXIT = 2
"""Two layers below the exit and two or three above: in one, keys and values would not depend on the prefix."""


@cache
def deep(name: str, runtime: str = "eager") -> PreTrainedModel:
    """A network to be cut, built once; nobody may change it."""
    sizes = {"encoder_layers": 1} if runtime == "static" and name in ("t5", "mt5") else {}
    return build(name, layers=LAYERS, dtype=torch.float64 if runtime == "eager" else torch.float32, **sizes)


@cache
def exit_pair(name: str, runtime: str) -> BigLittleDecoder:
    """The network and its first layers as a pair."""
    return BigLittleDecoder(deep(name, runtime), f"exit:{EXIT}", runtime=runtime)
