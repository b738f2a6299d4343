"""Tiny networks that are compiled once a test run, one of every architecture."""

from __future__ import annotations

from functools import cache
from unittest.mock import patch

import torch
from transformers import PreTrainedModel

from bild import BigLittleDecoder
from bild.models import CompiledModel, EagerModel
from bild.models.compiled import compiling
from tests.networks import build


@cache
def network_of(name: str, seed: int = 1) -> PreTrainedModel:
    """A float32 network that is built once; nobody may change it."""
    # Two layers of the decoder: in one, keys and values would not depend on the prefix.
    sizes = {"t5": {"layers": 1}, "mt5": {"layers": 1}, "bart": {"encoder_layers": 1}, "marian": {"encoder_layers": 1}}
    # Half of them have heads of 16 numbers, which our attention takes where the processor has its instructions.
    for wide, width in {"t5": 32, "bart": 32, "llama": 64, "qwen2": 64}.items():
        sizes.setdefault(wide, {})["width"] = width
    return build(name, seed=seed, dtype=torch.float32, **sizes.get(name, {}))


def compile_anew(name: str) -> CompiledModel:
    """A static model of :func:`network_of`; its graphs come from disk from the second time on."""
    model = without_templates(network_of(name))
    assert model.is_compiled
    return model


def without_templates(network: PreTrainedModel) -> CompiledModel:
    """A static model as a machine compiles it for which Inductor has no matrix products of its own.

    They cost ten seconds a graph, so few tests compile them.
    """
    with patch.object(compiling, "TEMPLATES", compiling.LIBRARY):
        return CompiledModel(network)


def must_compile(network: PreTrainedModel) -> CompiledModel:
    """A static model that may not fall back to the uncompiled modules."""
    model = CompiledModel(network)
    assert model.is_compiled
    return model


def recorded(network: PreTrainedModel) -> CompiledModel:
    """As a GPU runs a network; elsewhere nothing can be recorded, and each pass runs by itself."""
    with patch("bild.models.compiled.model.is_recorded", lambda _: True):
        model = CompiledModel(network)
    assert model.is_compiled
    return model


def check_compiled(network: PreTrainedModel) -> None:
    """Compiled, it scores what it scores uncompiled, up to rounding."""
    static = without_templates(network)
    assert static.is_compiled
    one, other = (model.start([[]]) for model in (static, EagerModel(network)))
    for tokens in ([3], [4, 5, 6, 7]):
        found, expected = (scorer.extend([tokens], len(tokens)) for scorer in (one, other))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@cache
def static_model(name: str) -> CompiledModel:
    """One static model an architecture; nobody may change it."""
    return compile_anew(name)


@cache
def pair_of(large: str, small: str, runtime: str) -> BigLittleDecoder:
    """Two of the networks as a pair."""
    if runtime == "static":
        for name in (large, small):
            static_model(name)
    pair = BigLittleDecoder(network_of(large), network_of(small), runtime=runtime)
    if runtime == "static":
        assert pair.large.is_compiled and pair.small.is_compiled
    return pair
