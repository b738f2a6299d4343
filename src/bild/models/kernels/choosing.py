"""Which int8 kernel a layer runs on: measured on this machine, for its shape, and kept on disk.

A kernel whose numbers differ from the reference is out before it is timed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bild.cache import cache_folder
from bild.machine import processor
from bild.models.kernels import building
from bild.models.kernels.linear import fits, int8_linear, pack, pad_scale, plain_int8_linear
from bild.models.kernels.operators import LINEAR, operator

logger = logging.getLogger("bild")

ROWS = (1, 8, 32)
"""Rows at which a layer is measured. It holds one copy of its weights, so one kernel serves all of them: the one whose
times have the lower product."""
LARGEST = 8192
"""Outputs that are measured of a layer that has more: times grow in proportion."""
TURNS = 11
"""How often each kernel runs; the median counts."""
LONGEST_S = 0.1
"""Seconds of measuring, for each number of rows, beyond which fewer turns do."""
OFF = 0.03
"""Share of the reference's norm by which a kernel may differ: rounding tokens to int8 moves about 0.01."""

Kernel = Callable[[Tensor], Tensor]
Multiply = Callable[[Tensor, Tensor, Tensor], Tensor]


def is_faster(weight: Tensor, scale: Tensor, today: Multiply) -> bool:
    """Whether our kernel beats another one on a layer of this shape; the same answer from one run to the next.

    Args:
        weight: int8 ``[out, in]``.
        scale: of each output, in the dtype of the layer's states.
        today: the other one, of states ``[rows, in]``, a weight and its scale.
    """
    if not fits(weight.shape[0], weight.shape[1], scale.dtype, weight.device) or operator(LINEAR) is None:
        return False
    name, kept = _name(weight, scale), _kept()
    if not isinstance(kept.get(name), dict):
        kept[name] = _measure(weight[:LARGEST], scale[:LARGEST], today)
        _keep(kept)
    return bool(kept[name].get("ours"))


def _measure(weight: Tensor, scale: Tensor, today: Multiply) -> dict[str, Any]:
    """Medians in µs by rows, and whether ours is chosen."""
    packed, padded = pack(weight), pad_scale(scale)

    def ours(states: Tensor) -> Tensor:
        return int8_linear(states, packed, padded, None, weight.shape[0])

    def theirs(states: Tensor) -> Tensor:
        return today(states, weight, scale)

    examples = [torch.randn(rows, weight.shape[1], dtype=scale.dtype) for rows in ROWS]
    right = [_is_right(kernel, examples, weight, scale) for kernel in (ours, theirs)]
    if not all(right):
        logger.warning("an int8 kernel gives wrong numbers on this machine: %s", "torch's" if right[0] else "bild's")
        return {"ours": right[0]}
    times = [_times([ours, theirs], states) for states in examples]
    gain = math.prod(other / own for own, other in times)
    return {"ours": gain > 1, "rows": list(ROWS), "us": [[round(1e6 * each, 1) for each in pair] for pair in times]}


def _is_right(kernel: Kernel, examples: list[Tensor], weight: Tensor, scale: Tensor) -> bool:
    for states in examples:
        expected = plain_int8_linear(states, weight, scale, None).float()
        # Written so that NaN is wrong.
        if not (kernel(states).float() - expected).norm() <= OFF * expected.norm():
            return False
    return True


def _times(kernels: list[Kernel], states: Tensor) -> list[float]:
    """The median time of each, in seconds; in turns, so that what else the machine does meets all of them."""
    found: list[list[float]] = [[] for _ in kernels]
    begin = time.perf_counter()
    while len(found[0]) < TURNS and (len(found[0]) < 3 or time.perf_counter() - begin < LONGEST_S):
        for kernel, times in zip(kernels, found, strict=True):
            # Threads of the other kernel may still be spinning, so the first call of a turn does not count.
            kernel(states)
            start = time.perf_counter()
            kernel(states)
            times.append(time.perf_counter() - start)
    return [median(times) for times in found]


def _name(weight: Tensor, scale: Tensor) -> str:
    dtype = str(scale.dtype).removeprefix("torch.")
    return f"{weight.shape[1]}->{weight.shape[0]} {dtype}, {torch.get_num_threads()} threads"


def choices_file() -> Path:
    """Where the choices of this machine are kept, beside the kernels."""
    machine = hashlib.sha256(f"{processor()} {os.cpu_count()}".encode()).hexdigest()[:8]
    return cache_folder() / "kernels" / f"choices-{building.digest()}-{machine}.json"


def _kept() -> dict[str, Any]:
    try:
        found = json.loads(choices_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(choices: dict[str, Any]) -> None:
    file = choices_file()
    # Two processes at once may lose an entry, which is then measured again; so it is where nothing can be written.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tmp", dir=file.parent) as folder:
            unfinished = Path(folder) / file.name
            unfinished.write_text(json.dumps(choices, indent=1), encoding="utf-8")
            os.replace(unfinished, file)
