"""Which kernel a layer runs on: measured on this machine, for its shape, and kept on disk.

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

logger = logging.getLogger("bild")

ROWS = (1, 8, 32)
"""Rows at which a layer is measured. It holds one copy of its weights, so one kernel serves all of them: the one whose
times have the lower product."""
LARGEST = 8192
"""Outputs that are measured of a layer that has more: times grow in proportion."""
ROUNDS = 3
"""How often each kernel is measured, in turn; the best round counts. What else a machine does makes kernels slower,
never faster, and a busy moment must not decide how a layer runs from then on."""
TURNS = 5
"""How often a kernel runs in a round; the median counts."""
LONGEST_S = 0.02
"""Seconds of a round, beyond which fewer turns do."""
QUIET_S = 0.02
"""Seconds after which threads that were spinning are asleep."""
OFF = 0.03
"""Share of the reference's norm by which a kernel may differ: rounding tokens to int8 moves about 0.01."""

Kernel = Callable[[Tensor], Tensor]


def is_faster(name: str, *, ours: Kernel, theirs: Kernel, plain: Kernel, inputs: int, dtype: torch.dtype) -> bool:
    """Whether our kernel beats another one on a layer of this shape; the same answer from one run to the next.

    Args:
        name: of the shape and number format.
        ours: of states ``[rows, in]``.
        theirs: likewise; a layer is measured up to :data:`LARGEST` outputs.
        plain: what both must come near.
        inputs: of the layer.
        dtype: of the states.
    """
    name, kept = f"{name}, {torch.get_num_threads()} threads", _kept()
    if not isinstance(kept.get(name), dict):
        kept[name] = _measure([ours, theirs], plain, inputs, dtype)
        _keep(kept)
    return bool(kept[name].get("ours"))


@torch.no_grad()
def _measure(kernels: list[Kernel], plain: Kernel, inputs: int, dtype: torch.dtype) -> dict[str, Any]:
    """Medians in µs by rows, and whether ours is chosen."""
    examples = [torch.randn(rows, inputs, dtype=dtype) for rows in ROWS]
    right = [all(_is_right(kernel, plain, states) for states in examples) for kernel in kernels]
    if not all(right):
        logger.warning("a kernel gives wrong numbers on this machine: %s", "torch's" if right[0] else "bild's")
        return {"ours": right[0]}
    times = [_times(kernels, states) for states in examples]
    gain = math.prod(other / own for own, other in times)
    return {"ours": gain > 1, "rows": list(ROWS), "us": [[round(1e6 * each, 1) for each in pair] for pair in times]}


def _is_right(kernel: Kernel, plain: Kernel, states: Tensor) -> bool:
    expected = plain(states).double()
    # Written so that NaN is wrong.
    return bool((kernel(states).double() - expected).norm() <= OFF * expected.norm())


def _times(kernels: list[Kernel], states: Tensor) -> list[float]:
    """The time of each, in seconds; one after the other, ours first.

    OpenMP's threads spin for milliseconds after a product of torch's, on the cores of ours. In a graph that has all
    products from us they never do.
    """
    rounds = [[_time(kernel, states) for kernel in kernels] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _time(kernel: Kernel, states: Tensor) -> float:
    """The median time of a kernel in one round, in seconds."""
    time.sleep(QUIET_S)
    kernel(states)
    times: list[float] = []
    while len(times) < TURNS and (len(times) < 3 or sum(times) < LONGEST_S):
        start = time.perf_counter()
        kernel(states)
        times.append(time.perf_counter() - start)
    return median(times)


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
