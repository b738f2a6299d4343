"""A graph is compiled once in its life; what happens where it cannot be kept, found or read."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._inductor import cpp_builder

from bild.models import CompiledModel, is_prepared
from bild.models.compiled import compiling
from bild.models.compiled.graphs import Encode
from bild.models.seams import own_modules
from tests.compiled import network_of, static_model
from tests.networks import build, forward, random_tokens

NAME = "gpt2"


@pytest.fixture
def own_cache(graph_cache, fresh_cache, monkeypatch) -> Path:
    """A cache folder of the test's own, with the graph of :data:`NAME` in it."""
    with monkeypatch.context() as patched:
        patched.setenv("BILD_CACHE", str(graph_cache))
        static_model(NAME)
    (file,) = graph_cache.glob(f"compiled/*-{compiling.fingerprint(network_of(NAME))}-read.pt2")
    (fresh_cache / "compiled").mkdir()
    shutil.copy(file, fresh_cache / "compiled")
    return fresh_cache


@pytest.fixture
def no_compiler(monkeypatch) -> list[str]:
    """Grows by the name of every graph that would be compiled; none is."""
    asked: list[str] = []

    def refuse(module, inputs, dynamic_shapes, file, options):
        asked.append(file.stem)
        raise RuntimeError("not now")

    monkeypatch.setattr(compiling, "_compile", refuse)
    return asked


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with one thread, as the tests do."""
    code = f"import torch; torch.set_num_threads(1)\n{code}"
    root, environment = Path(__file__).parents[2], {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, env=environment)


def warning_of(caplog) -> str:
    """The one thing bild warned of, besides saying what it compiles."""
    records = [record for record in caplog.records if record.name == "bild" and record.levelname == "WARNING"]
    (warning,) = [text for record in records if not (text := record.getMessage()).startswith("compiling ")]
    return warning


def graph_of(folder: Path) -> Path:
    (file,) = folder.glob("compiled/*.pt2")
    return file


def assert_right(model: CompiledModel) -> None:
    tokens = random_tokens(Random(0), 5)
    logits = model.start([[]]).extend([tokens], last=5)[0]
    torch.testing.assert_close(logits, forward(network_of(NAME), [], tokens), rtol=0.0, atol=1e-4)


@pytest.mark.compiles
def test_a_second_model_of_the_same_weights_compiles_nothing(own_cache, no_compiler):
    told: list[str] = []
    before = compiling.compilations
    model = CompiledModel(copy.deepcopy(network_of(NAME)), progress=told.append)
    assert model.is_compiled
    assert (no_compiler, told, compiling.compilations) == ([], [], before)
    assert_right(model)


@pytest.mark.compiles
def test_another_process_compiles_nothing(own_cache):
    code = """
from tests.models.test_compiling import NAME, CompiledModel, assert_right, compiling, network_of
model = CompiledModel(network_of(NAME))
assert_right(model)
print(model.is_compiled, compiling.compilations)
"""
    done = in_a_process(code)
    assert (done.stdout, done.stderr, done.returncode) == ("True 0\n", "", 0)


@pytest.mark.compiles
def test_a_graph_is_compiled_without_the_regular_expressions_of_the_standard_library(own_cache):
    with zipfile.ZipFile(graph_of(own_cache)) as package:
        libraries = [package.read(name) for name in package.namelist() if name.endswith(".so")]
    assert libraries
    assert not any(b"regex_traits" in library for library in libraries)


@pytest.mark.compiles
def test_what_is_packed_is_left_nowhere_else(fresh_cache, tmp_path, monkeypatch):
    """The temporary files of a system may be its memory, and a graph holds all weights."""
    left = tmp_path / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(left))
    linear, rows = torch.nn.Linear(300, 200).eval(), torch.randn(3, 300)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    run = compiling.compiled(linear, [rows], shapes, name="linear", progress=str, many_rows=True)
    torch.testing.assert_close(run([rows])[0], linear(rows), rtol=0.0, atol=1e-4)
    assert [each.name for each in (fresh_cache / "compiled").iterdir()] == ["linear.pt2"]
    assert sum(each.stat().st_size for each in left.rglob("*") if each.is_file()) < 100_000 < 300 * 200 * 4


@pytest.mark.compiles
@pytest.mark.thorough
def test_compiling_once_what_no_template_is_for(tmp_path, monkeypatch, caplog):
    """Float64, where nothing hides behind rounding: counted, told, kept, and nothing else left behind."""
    monkeypatch.setenv("BILD_CACHE", str(tmp_path))
    caplog.set_level(logging.INFO, "bild")
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch._export", "torch.fx")]
    levels, filters = [each.level for each in loggers], list(warnings.filters)
    network, told, before = build(NAME, seed=1), [], compiling.compilations
    model = CompiledModel(network, progress=told.append)
    assert model.is_compiled and compiling.compilations == before + 1
    file = graph_of(tmp_path)
    assert told == [file.stem] and f"compiled {file.stem} in " in caplog.text
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    assert ([each.level for each in loggers], list(warnings.filters)) == (levels, filters)
    tokens = random_tokens(Random(1), 40)
    for again in (model, CompiledModel(network, progress=told.append)):
        scorer, at = again.start([[]]), 0
        for count in (5, 1, 11, 1, 20, 2):
            logits = scorer.extend([tokens[at : at + count]], last=count)[0]
            expected = forward(network, [], tokens[: at + count])[-count:]
            torch.testing.assert_close(logits, expected, rtol=0.0, atol=1e-9)
            at += count
    assert len(told) == 1 and compiling.compilations == before + 1


def changed(network):
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).view(-1)[7] += 1e-3
    return other


def unscaled(network):
    other = copy.deepcopy(network)
    other.config.scale_attn_weights = False
    return other


OTHERS = {
    "one weight": lambda: changed(network_of(NAME)),
    "all weights": lambda: build(NAME, seed=2, dtype=torch.float32),
    "dtype": lambda: build(NAME, seed=1, dtype=torch.float64),
    "layers": lambda: build(NAME, seed=1, dtype=torch.float32, layers=1),
    "config": lambda: unscaled(network_of(NAME)),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.compiles
def test_whatever_else_is_computed_is_compiled_anew(other, own_cache, no_compiler):
    assert not CompiledModel(OTHERS[other]()).is_compiled
    assert [name.split("-")[0] for name in no_compiler] == ["GPT2LMHeadModel"]
    assert no_compiler[0] != graph_of(own_cache).stem


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoding_computes_no_more_of_the_decoder_than_keys_and_values_of_the_source(name):
    network = own_modules(build(name))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    mask = (ids > 0)[:, None, None]
    program = torch.export.export(Encode(network), (ids, mask), strict=False)
    expected = program.module()(ids, mask)
    compiling._drop_unread(program.graph)
    found = program.module()(ids, mask)
    assert [torch.equal(*pair) for pair in zip(found, expected, strict=True)] == [True] * len(expected)
    products = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    of_encoder = [module for module in network.get_encoder().modules() if isinstance(module, torch.nn.Linear)]
    assert len(expected) > 0 and len(products) == len(of_encoder) + len(expected)


def test_weights_are_hashed_once_until_one_changes(monkeypatch):
    hashes: list[object] = []
    original = hashlib.sha256
    counting = SimpleNamespace(sha256=lambda data: hashes.append(data) or original(data))
    monkeypatch.setattr(compiling, "hashlib", counting)
    network = copy.deepcopy(network_of(NAME))
    names, counts = [], []
    for change in (
        lambda: None,
        lambda: None,
        lambda: next(network.parameters()).view(-1)[7].add_(1e-3),
        network.double,
    ):
        with torch.no_grad():
            change()
        hashes.clear()
        names.append(compiling.fingerprint(network))
        counts.append(len(hashes))
    # The weights, then all that the graph depends on.
    assert counts == [2, 1, 2, 2]
    assert names[0] == names[1] and len(set(names)) == 3
    assert names[2:] == [compiling.fingerprint(copy.deepcopy(network).float()), compiling.fingerprint(network)]


@pytest.mark.compiles
def test_says_whether_a_network_is_prepared(own_cache, monkeypatch):
    assert is_prepared(network_of(NAME)) and not is_prepared(changed(network_of(NAME)))
    monkeypatch.setattr(compiling, "fingerprint", lambda network: pytest.fail("hashed in vain"))
    assert not is_prepared(network_of("t5"))
    graph_of(own_cache).unlink()
    assert not is_prepared(network_of(NAME))


@pytest.mark.compiles
def test_another_number_of_threads_is_compiled_anew(own_cache, no_compiler):
    torch.set_num_threads(2)
    try:
        assert not CompiledModel(network_of(NAME)).is_compiled
    finally:
        torch.set_num_threads(1)
    assert len(no_compiler) == 1


def test_a_place_on_disk_makes_no_difference(tmp_path):
    copy.deepcopy(network_of(NAME)).save_pretrained(tmp_path / "here")  # saving changes the configuration
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (type(network_of(NAME)).from_pretrained(tmp_path / place) for place in ("here", "there"))
    assert here.config._name_or_path != there.config._name_or_path
    assert compiling.fingerprint(here) == compiling.fingerprint(there)


DAMAGES = {
    "empty": lambda data: b"",
    "no archive": lambda data: b"nothing of the kind",
    "half": lambda data: data[: len(data) // 2],
    "library": lambda data: data.replace(b"ELF", b"FLE"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.compiles
def test_a_damaged_graph_is_compiled_anew(damage, own_cache, monkeypatch, caplog):
    file = graph_of(own_cache)
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    compiled: list[str] = []

    def restore(module, inputs, dynamic_shapes, file, options):
        compiled.append(file.stem)
        file.write_bytes(whole)

    monkeypatch.setattr(compiling, "_compile", restore)
    model = CompiledModel(network_of(NAME))
    assert model.is_compiled and compiled == [file.stem]
    assert "cannot be compiled" not in caplog.text
    assert_right(model)


@pytest.mark.compiles
def test_of_two_that_need_a_graph_at_once_one_compiles_it(own_cache, monkeypatch):
    whole, compiled = graph_of(own_cache).read_bytes(), []

    def wait_and_restore(module, inputs, dynamic_shapes, file, options):
        compiled.append(file.stem)
        time.sleep(0.2)
        file.write_bytes(whole)

    monkeypatch.setattr(compiling, "_compile", wait_and_restore)
    names: list[str] = []
    with ThreadPoolExecutor(2) as workers:

        def need(name: str) -> Any:
            return compiling.compiled(torch.nn.Identity(), (), None, name=name, progress=names.append)

        assert all(list(workers.map(need, ("new", "new"))))
    assert compiled == ["new"] and names == ["new", "new"]
    assert not [*own_cache.glob("compiled/*.lock")]


@pytest.mark.compiles
def test_a_graph_that_stays_damaged_costs_speed_only(own_cache, monkeypatch, caplog):
    monkeypatch.setattr(compiling, "_compile", lambda module, inputs, shapes, file, options: file.write_bytes(b"again"))
    graph_of(own_cache).write_bytes(b"damaged")
    model = CompiledModel(network_of(NAME))
    assert warning_of(caplog).startswith("GPT2LMHeadModel cannot be compiled and runs uncompiled (")
    assert not model.is_compiled
    assert_right(model)


@pytest.mark.compiles
def test_what_a_killed_compilation_left_behind_is_removed_in_time(tmp_path):
    file, places = tmp_path / "graph.pt2", [tmp_path / name for name in ("tmpold", "tmpyoung", "kept")]
    for place in places:
        place.mkdir()
        (place / "graph.pt2").write_bytes(b"half")
    for place in (places[0], places[2]):
        os.utime(place, (0, time.time() - 25 * 3600))
    with pytest.raises(Exception):  # noqa: B017 - nothing that can be exported
        compiling._compile(torch.nn.Identity(), ("no tensor", "nor two"), None, file, compiling.LIBRARY)
    assert sorted(tmp_path.iterdir()) == sorted(places[1:])


@pytest.mark.compiles
def test_what_a_killed_compilation_left_behind_is_not_read(own_cache, no_compiler):
    file = graph_of(own_cache)
    unfinished = file.parent / "tmpabc"
    unfinished.mkdir()
    file.rename(unfinished / "graph.pt2")
    assert not CompiledModel(network_of(NAME)).is_compiled
    assert no_compiler == [file.stem]


@pytest.mark.compiles
def test_a_folder_that_cannot_be_written_costs_speed_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BILD_CACHE", str(tmp_path / "file"))
    model = CompiledModel(network_of(NAME))
    prefix = "GPT2LMHeadModel cannot be compiled and runs uncompiled (NotADirectoryError: "
    assert warning_of(caplog).startswith(prefix)
    assert_right(model)


def test_a_machine_without_a_compiler_costs_speed_only(tmp_path):
    # In a process of its own: torch remembers for good what it found out about the compiler.
    code = """
import logging; logging.basicConfig(format="%(message)s")
from tests.models.test_compiling import NAME, CompiledModel, assert_right, network_of
assert_right(CompiledModel(network_of(NAME)))
"""
    done = in_a_process(code, BILD_CACHE=str(tmp_path), PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    *of_kernels, last = done.stderr.splitlines(keepends=True)
    assert [line.split("(")[0] for line in of_kernels] in (
        ["torch's own kernels are used: bild's cannot be compiled here "],
        [],
    )
    assert last == (
        "GPT2LMHeadModel cannot be compiled and runs uncompiled "
        "(RuntimeError: there is no C++ compiler on this machine; install g++, or name one in CXX)\n"
    )


@pytest.mark.parametrize(("compiler", "found"), [("g++", True), ("clang++", False)])
def test_looks_for_the_compiler_where_torch_looks(compiler, found, tmp_path, monkeypatch):
    cpp_builder.cpp_compiler_search.cache_clear()
    (tmp_path / compiler).write_text("#!/bin/sh\n")
    (tmp_path / compiler).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": (None, "g++")}):
        assert compiling.has_compiler() == found
    cpp_builder.cpp_compiler_search.cache_clear()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "ValueError: first"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("\n  \n"), "RuntimeError"),
    ],
)
def test_an_error_in_one_line(error, line):
    assert compiling.one_line(error) == line
