"""How long a text takes, from counts: fitted to runs on the machine at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

FEATURES = ("text", "large text", "small step", "large step", "token read by large")
"""What a text is charged for: once; once if the large model takes part (its encoder or prompt); a pass of either
model; a token that the large model reads in a pass."""


class Counts(Protocol):
    """Counts of one text, as in :class:`bild.decoding.Stats`."""

    @property
    def num_small_steps(self) -> int: ...

    @property
    def num_large_steps(self) -> int: ...

    @property
    def num_draft_tokens(self) -> int: ...


def features(counts: Counts) -> list[float]:
    """How often each of :data:`FEATURES` is charged."""
    large = counts.num_large_steps
    return [1.0, float(large > 0), counts.num_small_steps, large, (counts.num_draft_tokens + large) * float(large > 0)]


@dataclass(frozen=True)
class CostModel:
    """Seconds as a weighted sum of :data:`FEATURES`, none of them negative."""

    seconds: tuple[float, ...]

    @classmethod
    def fit(cls, counts: Sequence[Counts], seconds: Sequence[float]) -> CostModel:
        """Least squares over measured texts.

        Args:
            counts: of each text.
            seconds: each text took.
        """
        table, times = np.array([features(each) for each in counts]), np.asarray(seconds)
        used = list(range(table.shape[1]))
        while True:
            weights = np.linalg.lstsq(table[:, used], times, rcond=None)[0]
            if (weights >= 0).all() or len(used) == 1:
                break
            # Costs cannot be negative: drop the most negative one and fit the others again.
            del used[int(weights.argmin())]
        full = np.zeros(table.shape[1])
        full[used] = weights.clip(min=0)
        return cls(tuple(full.tolist()))

    def predict(self, counts: Sequence[Counts]) -> float:
        """Seconds that these texts take together."""
        return float((np.array([features(each) for each in counts]) @ np.array(self.seconds)).sum())

    @property
    def cost_ratio(self) -> float | None:
        """A small step / a large step that reads one token; None where the large one costs nothing."""
        large = self.seconds[3] + self.seconds[4]
        return self.seconds[2] / large if large else None

    def to_dict(self) -> dict[str, float]:
        """Milliseconds by feature."""
        return {name: 1e3 * each for name, each in zip(FEATURES, self.seconds, strict=True)}
