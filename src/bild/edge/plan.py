"""Plans for two machines, one that drafts and one that verifies, and for the radio in front of them. Ours.

The paper of which this is (arXiv 2510.11331) has latency from counts of operations and its own programme; what is here
was derived from its description alone, see docs/related/edge-network.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bild.errors import InputError

Stage = Callable[[int, int], float]
"""Seconds of one round of so many texts with drafts of so many tokens."""


def expected_tokens(alpha: float, window: int) -> float:
    """Tokens a round yields, if each drafted token stays with the same chance: ``(1 − α^{γ+1}) / (1 − α)``.

    Args:
        alpha: that chance, 0…1.
        window: drafted tokens, 0…
    """
    return float(window + 1) if alpha >= 1 else (1 - alpha ** (window + 1)) / (1 - alpha)


def shares(bits: Sequence[float], efficiency: Sequence[float], goal: Literal["slowest", "sum"]) -> list[float]:
    """How to divide a band among uploads; of a share ``b`` an upload takes ``bits / (efficiency · b · band)`` seconds.

    Args:
        bits: of each upload, above 0.
        efficiency: bits per second and hertz of each.
        goal: what is to be least: ``"slowest"``, the longest upload (shares ∝ ``bits / efficiency``), or ``"sum"``, of
            all (∝ its square root).

    Returns:
        Shares that sum to 1.
    """
    loads = [size / rate for size, rate in zip(bits, efficiency, strict=True)]
    if not loads or not all(0 < load < math.inf for load in loads):
        raise InputError("uploads need bits and an efficiency above 0 each")
    weights = loads if goal == "slowest" else [math.sqrt(load) for load in loads]
    return [weight / sum(weights) for weight in weights]


def flow_shop(batches: Sequence[tuple[float, float]]) -> float:
    """When the second of two machines is done with all batches, which go through both in order.

    Args:
        batches: seconds on the first machine, and on the second.
    """
    first = second = 0.0
    for draft, verify in batches:
        first += draft
        second = max(first, second) + verify
    return second


@dataclass(frozen=True)
class Batch:
    """Texts that are decoded together.

    Args:
        size: how many.
        window: tokens of each draft.
    """

    size: int
    window: int


@dataclass(frozen=True)
class Plan:
    """Batches in order, and when all are expected to be done, in seconds."""

    batches: tuple[Batch, ...]
    finish_s: float


def stage_seconds(
    lengths: Sequence[int], batch: Batch, alpha: float, draft: Stage, verify: Stage
) -> tuple[float, float]:
    """What a batch is expected to take on both machines: its rounds are those of its longest text.

    Args:
        lengths: tokens of its texts.
        batch: its size and window.
        alpha: chance that a drafted token stays.
        draft: of a round.
        verify: of a round.
    """
    rounds = math.ceil(max(lengths) / expected_tokens(alpha, batch.window))
    return rounds * draft(batch.size, batch.window), rounds * verify(batch.size, batch.window)


def planned(
    lengths: Sequence[int], alpha: float, draft: Stage, verify: Stage, windows: Sequence[int], largest: int
) -> Plan:
    """Batches of consecutive texts and their windows, so that all are done soonest: a dynamic programme.

    What matters of the past is how far the second machine lags behind the first, ``lag' = max(0, lag − D) + V``, and
    how long the first has worked; what is worse in both than another past is dropped.

    Args:
        lengths: expected tokens of each text, in the order in which they are decoded (sorted, so that like share a
            batch).
        alpha: chance that a drafted token stays.
        draft: of a round.
        verify: of a round.
        windows: to choose from.
        largest: texts of a batch at most, 1…
    """
    if not lengths or not windows or largest < 1:
        raise InputError("a plan needs texts, windows to choose from, and batches of at least one text")
    best: list[list[tuple[float, float, tuple[Batch, ...]]]] = [[] for _ in range(len(lengths) + 1)]
    best[0] = [(0.0, 0.0, ())]
    for start in range(len(lengths)):
        for size in range(1, min(largest, len(lengths) - start) + 1):
            for window in windows:
                batch = Batch(size, window)
                d, v = stage_seconds(lengths[start : start + size], batch, alpha, draft, verify)
                for worked, lag, before in best[start]:
                    best[start + size].append((worked + d, max(0.0, lag - d) + v, (*before, batch)))
            best[start + size] = _undominated(best[start + size])
    worked, lag, batches = min(best[-1], key=lambda state: state[0] + state[1])
    return Plan(batches, worked + lag)


def _undominated(
    states: list[tuple[float, float, tuple[Batch, ...]]],
) -> list[tuple[float, float, tuple[Batch, ...]]]:
    kept: list[tuple[float, float, tuple[Batch, ...]]] = []
    for state in sorted(states, key=lambda state: state[:2]):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept
