"""What stands in for the standard library's regular expressions while a graph is compiled."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler

from bild.models.compiled import compiling

DEVICES = ["cpu", "cuda", "cuda:1", "xpu:12", "mps:0", "cuda:", "cpu:x", "cpu:1:2", "cpux", "vulkan", "", ":1", "CPU"]
PROGRAM = """
#include <iostream>
#include <regex>
int main(int, char** given) {
  for (char** each = given + 1; *each; ++each) {
    std::regex re("(cpu|cuda|xpu|mps)(:([0-9]+))?");
    std::smatch sm;
    const std::string device(*each);
    if (std::regex_match(device, sm, re)) {
      std::cout << sm[1].str() << "," << sm[2].str() << "," << sm[3].matched << sm[3].str();
    }
    std::cout << "\\n";
  }
}
"""


@pytest.mark.parametrize("is_graph", [True, False])
def test_names_of_devices_are_read_as_by_the_real_ones(tmp_path, is_graph):
    """Whoever else's code is compiled meanwhile has the real ones, of which this program has thousands of symbols."""
    source, program = tmp_path / "devices.cpp", tmp_path / "devices"
    source.write_text(PROGRAM)
    defined = ["-DTORCH_INDUCTOR_CPP_WRAPPER"] if is_graph else []
    with compiling._short_headers():
        subprocess.run([get_cpp_compiler(), "-std=c++20", *defined, str(source), "-o", str(program)], check=True)
    assert (b"regex_traits" in program.read_bytes()) == (not is_graph)
    found = subprocess.run([program, *DEVICES], capture_output=True, text=True, check=True).stdout.splitlines()
    for device, line in zip(DEVICES, found, strict=True):
        match = re.fullmatch("(cpu|cuda|xpu|mps)(:([0-9]+))?", device)
        assert line == (f"{match[1]},{match[2] or ''},{int(bool(match[3]))}{match[3] or ''}" if match else "")


def test_this_torch_has_the_one_expression():
    assert compiling._has_one_expression()


@pytest.mark.parametrize(
    "runtime",
    [
        'std::regex re("(cpu|cuda|npu)(:([0-9]+))?"); std::regex_match(device_str, sm, re);',
        f"{compiling.DEVICES} std::regex_match(device_str, sm, re); std::regex_search(name, re);",
        None,
    ],
)
def test_another_torch_keeps_the_real_ones(monkeypatch, tmp_path, runtime):
    header = tmp_path / "include/torch/csrc/inductor/aoti_runtime/model_base.h"
    header.parent.mkdir(parents=True)
    if runtime is not None:
        header.write_text(runtime)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(compiling, "_has_one_expression", compiling._has_one_expression.__wrapped__)
    monkeypatch.delenv(compiling.SEARCHED, raising=False)
    with compiling._short_headers():
        assert compiling.SEARCHED not in os.environ


@pytest.mark.parametrize("given", [None, "/usr/local/mine", "/a:/b"])
def test_what_the_user_has_compilers_search_stays(monkeypatch, given):
    """Also where one compilation begins in another; an empty name in the list would mean the folder one is in."""
    monkeypatch.delenv(compiling.SEARCHED, raising=False)
    if given is not None:
        monkeypatch.setenv(compiling.SEARCHED, given)
    ours, theirs = str(compiling.HEADERS), [] if given is None else given.split(os.pathsep)
    assert Path(ours, "regex").is_file()
    with compiling._short_headers():
        assert os.environ[compiling.SEARCHED].split(os.pathsep) == [ours, *theirs]
        with compiling._short_headers():
            assert os.environ[compiling.SEARCHED].split(os.pathsep) == [ours, ours, *theirs]
    assert os.environ.get(compiling.SEARCHED) == given
