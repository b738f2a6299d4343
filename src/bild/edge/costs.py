"""What passes cost: a device's by the token, a large model's by rows and tokens that share one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from bild.decoding import Scorer
from bild.errors import InputError


@dataclass(frozen=True)
class PassCost:
    """Seconds of one pass as a line.

    Args:
        base_s: of any pass.
        row_s: of each text in it.
        token_s: of each token that is read.
    """

    base_s: float
    row_s: float = 0.0
    token_s: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= each < math.inf for each in (self.base_s, self.row_s, self.token_s)):
            raise InputError(f"cost of a pass is {self}; allowed are 0 s or more")

    def seconds(self, rows: int, tokens: int) -> float:
        """Of a pass over so many texts, which read so many tokens together; none of it costs nothing."""
        return self.base_s + self.row_s * rows + self.token_s * tokens if rows else 0.0

    @classmethod
    def fit(cls, shapes: Sequence[tuple[int, int]], seconds: Sequence[float]) -> PassCost:
        """Least squares, none of the three negative.

        Args:
            shapes: rows and tokens of each pass.
            seconds: each took.
        """
        table, times = np.array([(1, rows, tokens) for rows, tokens in shapes], float), np.asarray(seconds)
        used = [0, 1, 2]
        while True:
            weights = np.linalg.lstsq(table[:, used], times, rcond=None)[0]
            if (weights >= 0).all() or len(used) == 1:
                break
            del used[int(weights.argmin())]
        full = np.zeros(3)
        full[used] = weights.clip(min=0)
        return cls(*full.tolist())


@dataclass(frozen=True)
class Costs:
    """What a simulation charges.

    Args:
        draft_s: of a token that a device drafts.
        verify: of a pass of the large model.
        told: where the numbers are from.
    """

    draft_s: float = 0.00026
    verify: PassCost = field(default_factory=lambda: PassCost(0.00086, 0.0, 0.00017))
    told: str = "defaults: the bundled pair, compiled, bfloat16, on two cores of 2025"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, in milliseconds."""
        verify = {name.replace("_s", "_ms"): 1e3 * value for name, value in asdict(self.verify).items()}
        return {"draft_ms": 1e3 * self.draft_s, "verify": verify, "told": self.told}


def measured(
    small: Callable[[int], Scorer],
    large: Callable[[int], Scorer],
    token: int,
    *,
    repeats: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """What passes cost on this machine.

    Args:
        small: begins so many texts with the small model.
        large: likewise with the large one.
        token: an id that is read again and again.
        repeats: of each shape; the median counts.
        clock: seconds; another one in tests.
    """
    draft = _timed(small(1), 1, token, repeats, clock)
    shapes = [(rows, width) for rows in (1, 2, 4, 8) for width in (1, 4, 8)]
    seconds = [_timed(large(rows), width, token, repeats, clock) for rows, width in shapes]
    verify = PassCost.fit([(rows, rows * width) for rows, width in shapes], seconds)
    return Costs(draft, verify, "measured on this machine")


def _timed(scorer: Scorer, width: int, token: int, repeats: int, clock: Callable[[], float]) -> float:
    rows, times = len(scorer.lengths), []
    for _ in range(repeats + 1):
        start = clock()
        with torch.inference_mode():
            # Whoever asks for the scores has to wait for them.
            scorer.extend([[token] * width] * rows, width).argmax(-1).tolist()
        times.append(clock() - start)
        scorer.truncate([width] * rows)
    return statistics.median(times[1:])
