"""How much one key may ask for: requests at a time, and requests a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bild.serving.problems import Problem

MINUTE = 60.0
SOON_S = 1
"""When to come back where it is a request of one's own that has to end first."""


@dataclass
class _Use:
    """What one key has used."""

    open: int = 0
    """Requests that are being answered."""
    left: float = 0.0
    """Requests that may be made at once, at ``seen``."""
    seen: float = 0.0


@dataclass
class Quotas:
    """Counts what each key asks for; nobody is counted where there is no limit.

    Args:
        at_once: requests of one key that are answered at the same time, 1…; None: any number.
        a_minute: requests of one key in a minute, 1…, as many at once; None: any number.
        clock: seconds; another one in tests.
    """

    at_once: int | None = None
    a_minute: int | None = None
    clock: Callable[[], float] = time.monotonic
    _uses: dict[bytes, _Use] = field(default_factory=dict)

    @contextmanager
    def use(self, who: bytes | None) -> Iterator[None]:
        """Answer a request of a key, by its digest.

        Raises:
            Problem: 429, if the key has used up what it may.
        """
        if who is None or (self.at_once is None and self.a_minute is None):
            yield
            return
        use = self._used(who)
        if self.at_once is not None and use.open >= self.at_once:
            raise _too_many(f"this key has {use.open} requests open, as many as one may; wait for one", SOON_S)
        if self.a_minute is not None:
            if use.left < 1:
                wait = math.ceil((1 - use.left) * MINUTE / self.a_minute)
                raise _too_many(f"this key has made {self.a_minute} requests in a minute; try again in {wait} s", wait)
            use.left -= 1
        use.open += 1
        try:
            yield
        finally:
            use.open -= 1

    def _used(self, who: bytes) -> _Use:
        """What a key has used until now; there are as many as keys, so none is ever forgotten."""
        now, full = self.clock(), float(0 if self.a_minute is None else self.a_minute)
        use = self._uses.setdefault(who, _Use(0, full, now))
        use.left, use.seen = min(full, use.left + (now - use.seen) * full / MINUTE), now
        return use


def _too_many(message: str, retry_s: int) -> Problem:
    headers = {"Retry-After": str(retry_s)}
    return Problem(429, "rate_limit_error", message, code="rate_limit_exceeded", headers=headers)
