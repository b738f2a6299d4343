"""A network that is only a clock: how long a message takes, and events in the order in which they happen."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bild.errors import InputError

HEADERS = 300
"""Bytes of a request's or an answer's headers."""


@dataclass
class Clock:
    """Time that passes only when something happens, and what is going to happen."""

    now: float = 0.0
    """In seconds."""
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something later; what is due at one time happens in the order it was asked for.

        Raises:
            ValueError: it would have been before now.
        """
        if not seconds >= 0:
            raise ValueError(f"an event is due in {seconds} s; allowed is 0 or more")
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, act))

    def run(self) -> float:
        """Let everything happen; the time of the last event."""
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self.now


@dataclass(frozen=True)
class Link:
    """A network between a device and a machine.

    Args:
        rtt_s: a message there and one back, both empty, in seconds, 0…
        jitter_s: mean of what is added to each message by chance (exponential), in seconds, 0…
        bits_per_second: above 0; inf: bytes take no time.

    Raises:
        InputError: a value out of range.
    """

    rtt_s: float = 0.0
    jitter_s: float = 0.0
    bits_per_second: float = float("inf")

    def __post_init__(self) -> None:
        if not (self.rtt_s >= 0 and self.jitter_s >= 0 and self.bits_per_second > 0):
            raise InputError(f"link is {self}; allowed are times of 0 s or more and more than 0 bits per second")

    def one_way(self, size: int, chance: random.Random) -> float:
        """Seconds that a message of so many bytes takes."""
        jitter = chance.expovariate(1 / self.jitter_s) if self.jitter_s else 0.0
        return self.rtt_s / 2 + jitter + 8 * size / self.bits_per_second
