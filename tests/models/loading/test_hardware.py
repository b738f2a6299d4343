"""The device and the number format that suit the machine, and weights that do not fit."""

from __future__ import annotations

import pytest
import torch

from bild import InputError, LoadError
from bild.models import resolve_device, resolve_dtype
from bild.models.loading import hardware

CPU = torch.device("cpu")


@pytest.mark.parametrize("present", [True, False])
def test_auto_device(monkeypatch, present):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert resolve_device("auto") == torch.device("cuda" if present else "cpu")
    assert resolve_device() == resolve_device("auto")


@pytest.mark.parametrize("device", ["cpu", CPU])
def test_a_device_by_name(device):
    assert resolve_device(device) == CPU


@pytest.mark.parametrize("device", ["cuda:99", "abacus", "", "cpu:x"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(InputError, match=f"device is {device!r}, which this machine does not have") as caught:
        resolve_device(device)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu_here():
    with pytest.raises(InputError, match="device is 'cuda', which this machine does not have"):
        resolve_device("cuda")


CPU_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "dtype"),
    [
        (False, False, torch.float32),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (None, None, torch.float32),
        (None, True, torch.bfloat16),
    ],
)
def test_auto_dtype_of_a_cpu(monkeypatch, avx512_bf16, amx, dtype):
    """None: a torch without that check."""
    # What it lists besides is of the machine that the test runs on.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    for check, answer in zip(CPU_CHECKS, (avx512_bf16, amx), strict=True):
        if answer is None:
            monkeypatch.delattr(torch.cpu, check, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, check, lambda answer=answer: answer, raising=False)
    assert resolve_dtype("auto") is dtype
    assert resolve_dtype("auto", CPU) is dtype
    assert resolve_dtype() is dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_dtype_of_a_gpu(monkeypatch, native, dtype):
    """An emulated bfloat16 does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert resolve_dtype("auto", torch.device("cuda")) is dtype


def test_dtype_by_name():
    for name in ("float16", "bfloat16", "float32", "float64"):
        assert resolve_dtype(name) is getattr(torch, name)
        assert resolve_dtype(getattr(torch, name)) is getattr(torch, name)


@pytest.mark.parametrize("dtype", ["int3", "fp32", "", torch.int32])
def test_unknown_dtype(dtype):
    with pytest.raises(
        InputError, match=f"dtype is {dtype!r}; allowed are auto, float32, bfloat16, float16, float64, int8, int4"
    ):
        resolve_dtype(dtype)


def test_a_pair_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(hardware, "memory_of", lambda device: 24_000_000_000)
    hardware.check_memory([("large", 20_000_000_000), ("small", 4_000_000_000)], CPU)
    with pytest.raises(
        LoadError, match=r"large needs 20\.0 GB and small needs 5\.0 GB .* cpu has 24\.0 GB; bild keeps"
    ):
        hardware.check_memory([("large", 20_000_000_000), ("small", 5_000_000_000)], CPU)


def test_this_machines_memory():
    assert 2**28 < hardware.memory_of(CPU) < 2**44
