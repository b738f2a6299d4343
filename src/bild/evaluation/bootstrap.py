"""The paired bootstrap: how far a figure would move if other examples had been drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 1000
DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; all None where there is nothing to compute it from."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float | None, resampled: list[float | None]) -> Estimate:
        """The figure of all examples, with the middle 95 % of those of the resamples."""
        known = [number for number in resampled if number is not None]
        if value is None or not known:
            return cls(value)
        outside = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(known, [outside, 100 - outside])
        return cls(value, float(low), float(high))


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of examples, the same ones for every method: differences between methods are paired.

    Args:
        num_examples: examples drawn from, 1…; as many are drawn, with replacement.
        resamples: 1…, default 1000.
        seed: of the draws.
    """

    num_examples: int
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0

    def sums(self, rows: np.ndarray) -> np.ndarray:
        """Sums over each resample.

        Args:
            rows: what is added up, one row an example: ``[num_examples, columns]``.

        Returns:
            ``[resamples, columns]``.
        """
        draws = np.random.default_rng(self.seed)
        at_once = max(1, DRAWS_AT_ONCE // self.num_examples)
        blocks = [min(at_once, self.resamples - at) for at in range(0, self.resamples, at_once)]
        return np.concatenate([self._counts(draws, block) @ rows for block in blocks])

    def _counts(self, draws: np.random.Generator, resamples: int) -> np.ndarray:
        """How often each example is in each resample."""
        size = self.num_examples
        drawn = draws.integers(0, size, (resamples, size)) + np.arange(resamples)[:, None] * size
        counts = np.bincount(drawn.ravel(), minlength=resamples * size)
        return counts.reshape(resamples, size).astype(np.float64)
