"""How long a forward pass takes: scorers of one row in turn, warmed up, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from bild.decoding import Scorer

TOKEN = 300
MOST_ROUNDS = 300
UNTIMED = 2
"""Forward passes at the start of a turn: the run before has read other weights meanwhile."""

Times = dict[str, dict[int, list[float]]]


def interleave(
    scorers: dict[str, Scorer], lengths: Sequence[int], prefix: int, rounds: int, seconds: float
) -> dict[str, dict[str, dict[str, float]]]:
    """Rounds in which every scorer has its turn; who goes first rotates, and so do the lengths in its turn.

    Args:
        scorers: by run, each with the prefix read.
        lengths: new tokens of a forward pass.
        prefix: tokens read before.
        rounds: least rounds.
        seconds: least time, up to 300 rounds.

    Returns:
        What :func:`describe_times` says, by run and length (as text).
    """
    names = list(scorers)
    times: Times = {name: {q: [] for q in lengths} for name in names}
    begun, done = time.perf_counter(), 0
    while done < rounds or (time.perf_counter() - begun < seconds and done < max(rounds, MOST_ROUNDS)):
        for index in range(len(names)):
            name = names[(done + index) % len(names)]
            shift = done % len(lengths)
            order = [*lengths[shift:], *lengths[:shift]]
            for q, took in timed_round(scorers[name], order, prefix).items():
                times[name][q].append(took)
        done += 1
    return {
        name: {str(q): describe_times(taken) for q, taken in by_length.items()} for name, by_length in times.items()
    }


def timed_round(scorer: Scorer, lengths: Sequence[int], prefix: int) -> dict[int, float]:
    """Seconds of a forward pass at each length, after some that bring the weights back into the caches."""
    for _ in range(UNTIMED):
        timed_forward(scorer, lengths[0], prefix)
    return {q: timed_forward(scorer, q, prefix) for q in lengths}


def timed_forward(scorer: Scorer, q: int, prefix: int) -> float:
    """Seconds to read q tokens and score them all; they are forgotten afterwards."""
    start = time.perf_counter()
    scorer.extend([[TOKEN] * q], last=q)
    took = time.perf_counter() - start
    scorer.truncate([prefix])
    return took


def describe_times(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile in milliseconds, and how many there are."""
    tenths = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [*seconds] * 9
    ms = {"ms": statistics.median(seconds), "p10_ms": tenths[0], "p90_ms": tenths[-1]}
    return {**{key: round(1e3 * value, 4) for key, value in ms.items()}, "rounds": len(seconds)}
