"""Compiling the kernels: once, whole or not at all, and never a request lost for want of a compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._inductor import cpp_builder

from bild.models.int8 import Int8Linear
from bild.models.kernels import building, graph_calls
from bild.models.kernels.operators import operator
from bild.models.native import Library

needs_kernel = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """The cache of a machine that has never compiled the kernels, and is taken to have the instructions."""
    monkeypatch.setenv("BILD_CACHE", str(tmp_path))
    monkeypatch.setattr(building, "is_supported", lambda: True)
    # Another test of this process may have loaded them.
    monkeypatch.setattr(Library, "is_registered", False)
    for each in (building.is_loaded, operator):
        each.cache_clear()
    yield tmp_path
    for each in (building.is_loaded, operator):
        each.cache_clear()


def compiler(monkeypatch, found) -> None:
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", found)


def layer_multiplies() -> bool:
    """Whether a measured layer is one of torch's and right."""
    weight = torch.randn(64, 64)
    replaced, states = Int8Linear(weight, None, own_kernel="measured"), torch.randn(3, 64)
    right = (replaced(states) - states @ weight.T).norm() < 0.03 * (states @ weight.T).norm()
    return not replaced.is_packed and bool(right)


def test_without_a_compiler_torchs_kernel_stays_and_one_line_says_so(fresh, monkeypatch, caplog):
    def none() -> str:
        raise RuntimeError("no C++ compiler")

    compiler(monkeypatch, none)
    assert layer_multiplies() and layer_multiplies()
    assert [each.getMessage() for each in caplog.records] == [
        "torch's own kernels are used: bild's cannot be compiled here (RuntimeError: no C++ compiler)"
    ]
    assert graph_calls() == {}


def test_a_compiler_that_fails_or_makes_nothing_leaves_nothing_behind(fresh, monkeypatch):
    for program in ("/bin/false", "/bin/true"):
        building.is_loaded.cache_clear()
        operator.cache_clear()
        compiler(monkeypatch, lambda program=program: program)
        assert layer_multiplies()
        assert list((fresh / "kernels").iterdir()) == []


def test_a_damaged_library_is_passed_over_where_none_can_be_compiled(fresh, monkeypatch):
    building.KERNELS.file.parent.mkdir()
    building.KERNELS.file.write_bytes(b"\x7fELF nothing")
    compiler(monkeypatch, lambda: "/bin/false")
    assert layer_multiplies()


def test_a_folder_that_cannot_be_written_means_torchs_kernel(fresh, monkeypatch):
    (fresh / "file").write_text("")
    monkeypatch.setenv("BILD_CACHE", str(fresh / "file"))
    assert layer_multiplies()


def test_a_processor_without_the_instructions_never_asks_for_a_compiler(fresh, monkeypatch):
    monkeypatch.setattr(building, "is_supported", lambda: False)
    compiler(monkeypatch, lambda: pytest.fail("asked"))
    assert layer_multiplies()


@needs_kernel
@pytest.mark.compiles
def test_a_forked_process_works_though_it_has_no_threads():
    program = (
        "import os, torch; from torch import nn; from bild.models.int8 import Int8Linear;"
        "layer = Int8Linear(torch.randn(1024, 1024), None, own_kernel=True); states = torch.randn(8, 1024);"
        "torch.set_num_threads(2); expected = layer(states); child = os.fork();"
        "torch.equal(layer(states), expected) and child == 0 and os._exit(7);"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=150, check=True)
    assert done.stdout.strip() == "7"


def test_the_sources_are_part_of_the_package():
    assert all(file.is_file() for file in (*building.KERNELS.headers, *building.KERNELS.sources))
    # What is beside them and not compiled would be forgotten.
    folder = building.KERNELS.headers[0].parent
    assert sorted(building.KERNELS.sources) == sorted(folder.glob("*.cpp"))
    assert sorted(building.KERNELS.headers) == sorted(folder.glob("*.h"))


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"avx2"}, building.AVX2),
        ({"avx2", "avx_vnni"}, building.AVX_VNNI),
        ({"avx2", "avx512"}, building.AVX2),
        ({"avx2", "avx_vnni", "avx512", "vnni"}, building.AVX512),
        ({"avx2", "avx_vnni", "avx512", "vnni", "avx512_bf16"}, building.AVX512_BF16),
    ],
)
def test_the_compiler_may_use_what_the_processor_has(has, expected, monkeypatch):
    monkeypatch.setattr(building, "has_instructions", lambda *names: set(names) <= has)
    assert building.instructions() == expected
    assert building.has_vnni() == (expected != building.AVX2)
