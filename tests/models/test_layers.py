"""Graphs of deep networks, cut where their layers repeat."""

from __future__ import annotations

import zipfile
from random import Random

import pytest
import torch
from torch.utils import _pytree as pytree

from bild.models import CompiledModel
from bild.models.compiled import compiling, layers
from bild.models.compiled import few as few_layers
from bild.models.compiled.graphs import Read
from bild.models.compiled.layers import Cut
from bild.models.compiled.model import graph_name
from bild.models.int8 import to_int8
from bild.models.seams import layers_of
from tests.networks import build, random_tokens

DEEP = 4


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(layers, "LEAST", DEEP)


def programs(network, monkeypatch):
    """What would be compiled of a network: module, inputs and exported program of each graph."""
    found = []

    def keep(module, inputs, dynamic_shapes, **_):
        with torch.no_grad():
            found.append((module, inputs, compiling.exported(module, inputs, dynamic_shapes)))
        return lambda given: called(module, inputs, given)

    stand_in(keep, monkeypatch)
    model = CompiledModel(network)
    assert model.is_compiled
    return found


def stand_in(compiled, monkeypatch) -> None:
    """Put this in the compiler's place. Its graphs have torch's attention, which reads under a mask."""
    monkeypatch.setattr(compiling, "compiled", compiled)
    monkeypatch.setattr("bild.models.cache.unwritten", torch.zeros)


def called(module, inputs, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """A module's results from its tensors in one list, as a graph takes them."""
    leaves, form = pytree.tree_flatten(tuple(inputs))
    rest = iter(given)
    arguments = pytree.tree_unflatten([next(rest) if isinstance(each, torch.Tensor) else None for each in leaves], form)
    with torch.no_grad():
        return [each for each in pytree.tree_leaves(module(*arguments)) if each is not None]


def run(cut: Cut, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """By the parts as they are, uncompiled."""
    places = dict(enumerate([*inputs, *cut.weights]))
    for call in cut.calls:
        results = cut.parts[call.part](*(places[at] for at in call.inputs))
        places.update(zip(call.outputs, results, strict=True))
    return list(results)


def check_same(cut: Cut, module, inputs) -> None:
    """The parts return, and write into their arguments, what the module does."""
    flat = [each for each in pytree.tree_leaves(inputs) if isinstance(each, torch.Tensor)]
    one, other = [each.clone() for each in flat], [each.clone() for each in flat]
    expected = called(module, inputs, one)
    with torch.no_grad():
        found = run(cut, other)
    for mine, theirs in zip([*found, *other], [*expected, *one], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


NETWORKS = {
    "llama": {},
    "gpt2": {},
    "t5": {},
    "bart": {},
    "windows": {"sliding_window": 2, "use_sliding_window": True, "max_window_layers": 2},
    "int8": {"vocab_size": 64},
}


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_together_are_the_whole(name, together, monkeypatch):
    monkeypatch.setattr(layers, "TOGETHER", (together, 1))
    kind = {"windows": "qwen2", "int8": "llama"}.get(name, name)
    deep = DEEP + (kind == "t5")
    network = build(kind, layers=deep, width=32, dtype=torch.float32, **NETWORKS[name])
    if name == "int8":
        to_int8(network)
    for module, inputs, program in programs(network, monkeypatch):
        cut = layers.cut(program, module)
        # A decoder of T5 has one layer more than its encoder.
        count = deep + (kind == "t5" and isinstance(module, Read))
        assert len(cut.calls) == 2 + (count // together if count % together == 0 else count) and len(cut.parts) == 3
        check_same(cut, module, inputs)


def test_attention_that_is_not_ours_is_not_compiled_where_rows_are_named(monkeypatch, caplog):
    monkeypatch.setattr(compiling.kernels, "replace_attention", lambda graph: 0)
    with pytest.raises(AssertionError):
        programs(build("gpt2", layers=DEEP, width=32, dtype=torch.float32), monkeypatch)
    assert "cannot be compiled and runs uncompiled (RuntimeError: not all of its attention is computed" in caplog.text
    # Heads of eight numbers are never our kernel's, and no rows are named.
    assert programs(build("llama", layers=DEEP, width=32, dtype=torch.float32), monkeypatch)


FEW = {"llama": 5, "gpt2": 4, "t5": 6, "bart": 5, "int8": 5}
"""Decoder layers of networks of which three are traced."""


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("name", FEW)
def test_the_parts_of_a_few_layers_are_those_of_all(name, together, monkeypatch):
    monkeypatch.setattr(layers, "TOGETHER", (together, 1))
    monkeypatch.setattr(few_layers.kernels, "has_all_products", lambda graph: True)
    kind, deep = {"int8": "llama"}.get(name, name), FEW[name] * together
    # A decoder of T5 has one layer more than its encoder.
    network = build(kind, layers=deep - (kind == "t5"), width=32, dtype=torch.float32, **NETWORKS[name])
    if name == "int8":
        to_int8(network)
    made = []

    def keep(module, inputs, dynamic_shapes, **_):
        with torch.no_grad():
            made.append((module, inputs, few_layers.cut_of_few(module, inputs, dynamic_shapes, compiling.exported)))
        return lambda given: called(module, inputs, given)

    stand_in(keep, monkeypatch)
    assert CompiledModel(network).is_compiled
    ((module, inputs, cut),) = [each for each in made if isinstance(each[0], Read)]
    # Before them, once each, and behind.
    assert len(cut.calls) == 2 + FEW[name] and len(cut.parts) <= 4
    # Of sources nothing is known but what all layers make of them.
    assert all(each[2] is None for each in made if not isinstance(each[0], Read))
    check_same(cut, module, inputs)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen2", {"sliding_window": 2, "use_sliding_window": True, "max_window_layers": 2}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ],
)
def test_layers_that_differ_are_all_traced(kind, changes):
    network = build(kind, layers=5, dtype=torch.float32, **changes)
    stack = [*layers_of(network)[1]]
    assert not few_layers.are_alike(network, stack[1:])
    network = build(kind, layers=5, dtype=torch.float32)
    stack = [*layers_of(network)[1]]
    assert few_layers.are_alike(network, stack[1:])
    # One of another kind, or with another number.
    norm = next(module for module in stack[3].modules() if "norm" in type(module).__name__.lower())
    setattr(norm, "eps" if kind == "gpt2" else "variance_epsilon", 0.5)
    assert not few_layers.are_alike(network, stack[1:])


def test_a_network_whose_layers_differ_or_are_few_is_not_cut(monkeypatch):
    network = build("llama", layers=DEEP, width=32, dtype=torch.float32)
    ((module, _, program),) = programs(network, monkeypatch)
    monkeypatch.setattr(layers, "LEAST", DEEP + 1)
    assert layers.cut(program, module) is None
    monkeypatch.setattr(layers, "LEAST", DEEP)
    for at, layer in enumerate(network.model.layers):
        layer.mlp = torch.nn.Sequential(*[layer.mlp] * (at + 1))
    ((module, _, program),) = programs(network, monkeypatch)
    assert layers.cut(program, module) is None


@pytest.mark.compiles
def test_a_deep_network_compiled_in_parts_scores_as_uncompiled(monkeypatch, caplog):
    caplog.set_level("INFO", "bild")
    monkeypatch.setattr(layers.processes, "can_fork", lambda: True)
    # Whichever products are ours here, at a toy's sizes.
    monkeypatch.setattr(compiling.kernels, "has_all_products", lambda graph: True)
    # Six of eight layers are traced. By other seeds rounding alone passes the bounds on some processors.
    network = build("llama", seed=88, layers=2 * DEEP, width=32, dtype=torch.float32)
    rng, source = Random(0), []
    tokens = [random_tokens(rng, count) for count in (5, 2, 7)]
    file = compiling.file_of(f"{graph_name(network)}-read")
    for _ in range(2):
        model = CompiledModel(network)
        assert model.is_compiled
        scorer, plain = model.scorer([source] * 3), model._uncompiled([source] * 3)
        for given in (tokens, [[row[0]] for row in tokens], [tokens[2], [], tokens[0]]):
            torch.testing.assert_close(scorer.extend(given), plain.extend(given), rtol=1e-4, atol=1e-5)
    with zipfile.ZipFile(file) as package:
        assert layers.CALLS in package.namelist()
    assert not any("one after the other" in record.getMessage() for record in caplog.records)
