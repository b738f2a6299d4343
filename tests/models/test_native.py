"""Libraries of our own: compiled once, whole or not at all, under a name that says what they depend on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from bild.models.native import Library

SOURCE = 'extern "C" __attribute__((visibility("default"))) int seven() { return 7; }'


def library(tmp_path, source: str = SOURCE, flags: tuple[str, ...] = ("-O1",)) -> Library:
    file = tmp_path / "seven.cpp"
    file.write_text(source)
    return Library("seven", [file], [], flags, operator="no_operator")


@pytest.mark.parametrize("changed", ["source", "flags", "torch"])
def test_another_source_flag_or_torch_is_another_file(changed, tmp_path, monkeypatch):
    before = library(tmp_path).file
    if changed == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99.0")
    other = {"source": {"source": "// nothing"}, "flags": {"flags": ("-O2",)}}.get(changed, {})
    assert library(tmp_path, **other).file != before


def test_the_second_process_compiles_nothing_and_a_third_a_damaged_file(tmp_path):
    library(tmp_path)
    program = (
        "import ctypes, pathlib, torch._inductor.cpp_builder as builder; from bild.models.native import Library;"
        "ask = builder.get_cpp_compiler; asked = [];"
        "builder.get_cpp_compiler = lambda: asked.append(1) or ask();"
        f"seven = Library('seven', [pathlib.Path({str(tmp_path / 'seven.cpp')!r})], [], (), operator='none');"
        "seven.load(); print(ctypes.CDLL(str(seven.file)).seven(), len(asked))"
    )
    cache = tmp_path / "cache"
    command, environment = [sys.executable, "-c", program], {**os.environ, "BILD_CACHE": str(cache)}
    outputs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    (file,) = (cache / "kernels").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    outputs.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True))
    assert [each.stdout.split() for each in outputs] == [["7", "1"], ["7", "0"], ["7", "1"]]
    assert [each.suffix for each in (cache / "kernels").iterdir()] == [".so"]


def test_two_processes_at_once_compile_it_once(tmp_path):
    library(tmp_path)
    log = tmp_path / "compiled.txt"
    program = (
        "import pathlib; from bild.models.native import Library; compile = Library._compile\n"
        f"def counted(self, file): open({str(log)!r}, 'a').write('once '); compile(self, file)\n"
        "Library._compile = counted;"
        f"Library('seven', [pathlib.Path({str(tmp_path / 'seven.cpp')!r})], [], (), operator='none').load()"
    )
    environment = {**os.environ, "BILD_CACHE": str(tmp_path / "cache")}
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert [each.wait() for each in processes] == [0, 0]
    assert log.read_text() == "once "
    assert [each.suffix for each in (tmp_path / "cache" / "kernels").iterdir()] == [".so"]
