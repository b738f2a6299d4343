"""How long a request takes under load, as two constants that can be read (arXiv 2605.15051).

With requests coming at rate ``r``, Little's law says that ``b = r L`` of them are in flight; if each of them makes the
others slower by as much, ``L = C1 + C2 b``, so ``L = C1 / (1 − r C2)``. With speculation, where a window of ``k``
drafted tokens yields ``a`` tokens a round,

    C1 = C1p + (C1v + k C1d) / a,    C2 = C2p + (C2v + k C2d) / a

(prefill, verification, drafting). Speculation lowers ``C1`` and may raise ``C2``: what it brings shrinks with the load,
and so does the best window. The paper's are the two formulas; how they are fitted here, by least squares with nothing
below 0, is ours. The constants of one stream follow from any log of it (:class:`~bild.tuning.CostModel`).
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np

from bild.decoding import Rules, Stats
from bild.engine import Event, Failed, Finished, Job, Limits, Place, Written
from bild.errors import InputError, reading
from bild.tuning.costs import CostModel

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder

NO_SPECULATION = 0
"""The window of the large model alone."""
NO_TIME = 1e15
"""Seconds or ms that no log holds; JSON has integers of any length, of which some are too large for a float."""
LEAST_REQUESTS = 8
"""Requests in a stretch of a log that a rate and a latency are told from."""


class Served(NamedTuple):
    """A request that was answered.

    Args:
        arrival: seconds, by any clock.
        latency: seconds until its last token.
    """

    arrival: float
    latency: float


@dataclass(frozen=True)
class Point:
    """What was seen at one rate.

    Args:
        rate: requests a second.
        latency: mean seconds of a request.
    """

    rate: float
    latency: float

    @property
    def in_flight(self) -> float:
        """Requests at the same time, by Little's law."""
        return self.rate * self.latency

    @classmethod
    def of(cls, served: Sequence[Served]) -> Point:
        """Of requests that came one after the other.

        Raises:
            InputError: fewer than two.
        """
        if len(served) < 2:
            raise InputError(f"a rate is told from two requests or more, got {len(served)}")
        times = sorted(each.arrival for each in served)
        latency = sum(each.latency for each in served) / len(served)
        span = times[-1] - times[0]
        return cls((len(served) - 1) / span if span > 0 else math.inf, latency)


@dataclass(frozen=True)
class LatencyModel:
    """``L = C1 + C2 b``.

    Args:
        alone: ``C1``, seconds of a request that nobody is beside.
        neighbour: ``C2``, seconds more for each request in flight, itself included.
    """

    alone: float
    neighbour: float

    @classmethod
    def fit(cls, points: Sequence[Point]) -> LatencyModel:
        """Least squares over what was seen at two rates or more.

        Raises:
            InputError: fewer points, or all at one load.
        """
        flights = [point.in_flight for point in points if math.isfinite(point.rate)]
        if len(flights) < 2 or max(flights) - min(flights) < 1e-9:
            raise InputError("the two constants are told from two different loads or more; give more rates")
        table = np.stack([np.ones(len(flights)), np.array(flights)], axis=1)
        times = np.array([point.latency for point in points if math.isfinite(point.rate)])
        alone, neighbour = np.linalg.lstsq(table, times, rcond=None)[0].tolist()
        if neighbour < 0:
            return cls(float(times.mean()), 0.0)
        return cls(0.0, float(times @ flights / np.dot(flights, flights))) if alone < 0 else cls(alone, neighbour)

    @property
    def capacity(self) -> float:
        """Requests a second at which the queue never ends."""
        return 1 / self.neighbour if self.neighbour > 0 else math.inf

    def at(self, rate: float) -> float:
        """Mean seconds of a request at this rate; inf where the queue never ends."""
        return self.alone / (1 - rate * self.neighbour) if rate < self.capacity else math.inf

    def explained(self, points: Sequence[Point]) -> float:
        """``R²``: the share of the latencies' variance that their loads explain, up to 1."""
        seen = np.array([point.latency for point in points])
        said = np.array([self.alone + self.neighbour * point.in_flight for point in points])
        spread = float(((seen - seen.mean()) ** 2).sum())
        return 1 - float(((seen - said) ** 2).sum()) / spread if spread else 1.0


@dataclass(frozen=True)
class Parts:
    """What one of the constants is made of, in seconds.

    Args:
        prefill: once a text, and whatever else does not depend on windows.
        verify: the passes of the large model, were each to yield one token.
        draft: one drafted token a round, likewise.
    """

    prefill: float
    verify: float
    draft: float

    @classmethod
    def fit(cls, constants: Mapping[int, float], tokens_a_round: Mapping[int, float]) -> Parts:
        """Least squares over windows, with nothing below 0.

        Args:
            constants: ``C1`` or ``C2`` by window; 0: the large model alone.
            tokens_a_round: ``a`` by window.

        Raises:
            InputError: fewer than three windows.
        """
        if len(constants) < 3:
            raise InputError(f"the parts are told from three windows or more, got {len(constants)}")
        rows = [[1.0, 1 / tokens_a_round[k], k / tokens_a_round[k]] for k in constants]
        used, table, values = [0, 1, 2], np.array(rows), np.array(list(constants.values()))
        while True:
            weights = np.linalg.lstsq(table[:, used], values, rcond=None)[0]
            if (weights >= 0).all() or len(used) == 1:
                break
            del used[int(weights.argmin())]
        full = np.zeros(3)
        full[used] = weights.clip(min=0)
        return cls(*full.tolist())

    def at(self, window: int, tokens_a_round: float) -> float:
        """The constant of a window."""
        return self.prefill + (self.verify + window * self.draft) / tokens_a_round


def best_window(models: Mapping[int, LatencyModel], rate: float) -> int:
    """The window of the least latency at a rate; of equals the shorter."""
    return min(sorted(models), key=lambda window: models[window].at(rate))


def stops_paying(models: Mapping[int, LatencyModel]) -> float | None:
    """The rate from which on the large model alone is the fastest; 0 if it always is, None if it never is.

    Args:
        models: by window, 0 among them.
    """
    alone, low, high = models[NO_SPECULATION], 0.0, models[NO_SPECULATION].capacity
    if best_window(models, 0.0) == NO_SPECULATION:
        return 0.0
    if not math.isfinite(high) or all(model.capacity >= alone.capacity for w, model in models.items() if w):
        return None
    high *= 1 - 1e-6
    if best_window(models, high) != NO_SPECULATION:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if best_window(models, middle) == NO_SPECULATION else (middle, high)
    return high


@dataclass(frozen=True)
class Load:
    """What became of the requests of one rate.

    Args:
        served: the requests.
        stats: of their texts.
    """

    served: Sequence[Served]
    stats: Stats

    @property
    def point(self) -> Point:
        """Its rate and latency, as they came out."""
        return Point.of(self.served)


def load(
    decoder: BigLittleDecoder, jobs: Sequence[Job], rules: Rules, rate: float, *, rows: int = 4, seed: int = 0
) -> Load:
    """Send requests to an engine at random times, and wait for all of them.

    Args:
        decoder: the pair, in the runtime it will be used in.
        jobs: one a request.
        rules: of all.
        rate: mean requests a second, above 0; they come as a Poisson process, whether or not others are done.
        rows: texts decoded together, 1…
        seed: of the times.

    Raises:
        InputError: a rate out of range, or a request that failed.
    """
    if not 0 < rate < math.inf:
        raise InputError(f"rate is {rate:g}; allowed is more than 0, requests a second")
    rng, done, lock = random.Random(seed), threading.Semaphore(0), threading.Lock()
    served: list[Served] = []
    stats, failed = Stats(), []

    def sink(events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Written):
                stats.add(event.commit)
                continue
            with lock:
                if isinstance(event, Finished):
                    served.append(Served(time.perf_counter() - event.total_s, event.total_s))
                elif isinstance(event, Failed):
                    failed.append(event.message)
            done.release()

    places: list[Place] = []
    # The model of a load knows no prompts that were read before.
    engine = decoder.engine(Limits(rows=rows, queue=len(jobs), prefix_tokens=0))
    thread, due = engine.start(), time.perf_counter()
    try:
        for job in jobs:
            time.sleep(max(0.0, due - time.perf_counter()))
            place = engine.reserve()
            engine.submit([job], rules, sink, place)
            places.append(place)
            due += rng.expovariate(rate)
        for _ in jobs:
            done.acquire()
    finally:
        for place in places:
            engine.release(place)
        engine.stop()
        thread.join()
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} requests failed, first with: {failed[0]}")
    return Load(served, stats)


def read_server_log(file: Path) -> list[Served]:
    """The requests that a server's log says were answered: JSON lines with ``at``, ``ms`` and ``status``.

    Raises:
        InputError: it cannot be read, or says nothing of the kind.
    """
    found = []
    for values in _json_lines(file):
        at, ms = values.get("at"), values.get("ms")
        if values.get("status") == 200 and _is_time(at) and _is_time(ms) and values.get("texts", 1):
            found.append(Served(float(at), float(ms) / 1e3))
    if len(found) < LEAST_REQUESTS:
        raise InputError(
            f"{file} tells of {len(found)} answered requests with their times; {LEAST_REQUESTS} or more are needed: "
            "the log of bild serve, a JSON line a request"
        )
    return sorted(found)


def stretches(served: Sequence[Served], most: int = 10) -> list[Point]:
    """Rates and latencies of equal parts of a log, which goes on at changing rates."""
    count = max(2, min(most, len(served) // LEAST_REQUESTS))
    size = len(served) / count
    parts = [served[round(at * size) : round((at + 1) * size)] for at in range(count)]
    return [Point.of(part) for part in parts if len(part) > 1]


def read_runs(file: Path) -> tuple[list[Stats], list[float]]:
    """Counts and seconds of the texts that ``bild generate --json`` has written.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    names = Stats.__dataclass_fields__
    counts, seconds = [], []
    for values in _json_lines(file):
        stats = values.get("stats")
        if isinstance(stats, dict) and _is_time(stats.get("total_s")):
            counts.append(Stats(**{name: stats[name] for name in names if name in stats}))
            seconds.append(float(stats["total_s"]))
    if not counts:
        raise InputError(f"{file} holds no texts with counts and times; write some with bild generate --json")
    return counts, seconds


def single_stream(counts: Sequence[Stats], seconds: Sequence[float]) -> tuple[CostModel, float]:
    """What texts decoded one at a time are charged for, and the share of their times' variance that it explains."""
    costs = CostModel.fit(counts, seconds)
    said = np.array([costs.predict([each]) for each in counts])
    seen = np.array(seconds)
    spread = float(((seen - seen.mean()) ** 2).sum())
    return costs, 1 - float(((seen - said) ** 2).sum()) / spread if spread else 1.0


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < NO_TIME


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file, line by line; what is none is passed over, as a log holds other lines too."""
    found = []
    with reading(file):
        lines = file.read_bytes().splitlines()
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            found.append(values)
    return found
