"""A clock that only moves when told, and methods that take a known time by it."""

from __future__ import annotations

from collections.abc import Callable

from bild.decoding import Stats
from bild.evaluation import Example, Output


class Clock:
    """Seconds; call number ``c`` of any method takes its cost times ``drift(c)``."""

    def __init__(self, drift: Callable[[int], float] = lambda call: 1.0) -> None:
        self.now, self.calls, self.drift = 100.0, 0, drift

    def __call__(self) -> float:
        return self.now

    def spend(self, cost_s: float) -> None:
        self.now += cost_s * self.drift(self.calls)
        self.calls += 1


class Fake:
    """Writes ``write(source)``, one token a character and an end token, for a known cost."""

    weight_bytes = 12_000_000

    def __init__(
        self,
        name: str,
        clock: Clock,
        cost_s: float = 1.0,
        write: Callable[[str], str] = str.upper,
        *,
        total_s: float | None = None,
        stats: Stats | None = None,
        log: list[tuple[str, str]] | None = None,
    ) -> None:
        self.name, self.clock, self.cost_s, self.write = name, clock, cost_s, write
        self.total_s, self.stats = total_s, stats
        self.log = [] if log is None else log
        self.closed = 0

    def __call__(self, source: str) -> Output:
        self.log.append((self.name, source))
        text = self.write(source)
        self.clock.spend(self.cost_s)
        ids = [*map(ord, text), 1]
        return Output(text, ids, ttft_s=self.cost_s / 4, total_s=self.total_s, stats=self.stats)

    def close(self) -> None:
        self.closed += 1


def examples(count: int, *, references: bool = True) -> list[Example]:
    sources = [f"text number {number} of these" for number in range(count)]
    return [Example(str(at), source, (source.upper(),) if references else ()) for at, source in enumerate(sources)]
