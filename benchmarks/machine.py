"""The machine a measurement was made on: what it is, what runs on it, how fast it reads memory."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bild.machine import describe_machine

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""CPU flags that decide which matrix products are fast."""
BUFFER_SIZES = tuple(1 << power for power in range(21, 31))
"""Bytes: from what a core's own cache holds to what only memory holds."""
KERNEL_ROUNDS = 9


def describe() -> dict[str, Any]:
    """What :func:`bild.machine.describe_machine` says, and what the speed of a step depends on besides."""
    cpu = _cpu_info()
    return {
        **describe_machine(),
        "cpu_model": " ".join(cpu[key] for key in ("vendor_id", "cpu family", "model") if key in cpu),
        "flags": [flag for flag in FLAGS if flag in cpu.get("flags", "").split()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }


def slug(facts: dict[str, Any]) -> str:
    """A processor's name in a file name, like ``amd-epyc-9555p``; where its host hides which model it is, with its
    family and model number instead, like ``amd-epyc-25-1``.

    Args:
        facts: from :func:`describe`.
    """
    words = re.sub(r"\((R|TM)\)|\b(CPU|Processor)\b|@.*", " ", facts["cpu"], flags=re.IGNORECASE).lower()
    if not re.search(r"\d", words):
        words += " " + " ".join(facts["cpu_model"].split()[1:])
    return "-".join(re.findall(r"[a-z0-9]+", words))


def read_bandwidth(sizes: tuple[int, ...] = BUFFER_SIZES, rounds: int = KERNEL_ROUNDS) -> dict[str, dict[str, float]]:
    """How fast memory is read, in GB/s (10⁹ bytes), by the number of threads torch uses now.

    Every kernel reads a whole buffer once and writes next to nothing. Which one is fastest depends on the
    machine and on how many threads there are, so several run and the best median counts.

    Args:
        sizes: bytes of the buffers, powers of two from 1 MiB; a small one stays in a cache, a large one does not.
        rounds: timed runs of every kernel, after two that are not timed.

    Returns:
        For each size in bytes (as text): the median of each kernel, and the largest of them as ``"best"``.
    """
    results = {}
    for size in sizes:
        medians = {name: size / _median_seconds(kernel, rounds) / 1e9 for name, kernel in _kernels(size).items()}
        results[str(size)] = {**medians, "best": max(medians.values())}
    return results


def bandwidth_for(bandwidth: dict[str, dict[str, float]], size: float) -> float:
    """GB/s for a step that reads ``size`` bytes: the best of all buffers from the largest that is no larger.

    A model that fits into a cache is read from there, step after step, so memory alone is no bound for it.

    Args:
        bandwidth: from :func:`read_bandwidth`.
        size: bytes; below the smallest buffer, all buffers count.
    """
    nearest = max((int(buffer) for buffer in bandwidth if int(buffer) <= size), default=0)
    return max(kernels["best"] for buffer, kernels in bandwidth.items() if int(buffer) >= nearest)


def _kernels(size: int) -> dict[str, Callable[[], object]]:
    numbers = torch.ones(size // 4)
    # No constant pattern that a host could deduplicate, and no denormal numbers in 16 bits either.
    numbers.uniform_(1, 2)
    left, right = numbers.chunk(2)
    rows, vector = numbers.view(-1, 4096), torch.ones(4096)
    half_rows, half_vector = torch.ones(size // 2, dtype=torch.bfloat16).view(-1, 4096), torch.ones(4096).bfloat16()
    return {
        "sum float32": numbers.sum,
        "sum int64": numbers.view(torch.int64).sum,
        "dot float32": lambda: torch.dot(left, right),
        "matrix-vector float32": lambda: torch.mv(rows, vector),
        "matrix-vector bfloat16": lambda: torch.mv(half_rows, half_vector),
    }


def _median_seconds(kernel: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        kernel()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def _cpu_info() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; empty where there is none."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
