"""How many tokens to draft where verifying has a price: controllers, and a drafter that asks one.

A controller sees what became of drafts up to the first rejected token, and how long things took, never more: so what
is drafted next does not depend on random numbers that are still to be used, and lossless rules stay lossless.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bild.decoding import Draft, Drafter, History, Learner, Row, Verdict
from bild.edge.plan import expected_tokens
from bild.errors import check_count

LONGEST = 16
FIRST = 4
DECAY = 0.8
STEP = 2
"""Tokens the window of :class:`CostAware` changes by at most from one round to the next."""
PRIOR, PRIOR_TOKENS = 0.7, 10.0
"""What share of drafted tokens is taken to stay before anything is known, and for how many tokens that counts."""


class Controller(Protocol):
    """Chooses the longest draft of the next round of one text."""

    @property
    def window(self) -> int:
        """Longest draft, 1…"""

    def learn(self, drafted: int, accepted: int, verify_s: float, draft_s: float) -> None:
        """Take a round into account.

        Args:
            drafted: tokens of the draft.
            accepted: how many of them stay.
            verify_s: from the end of the draft to the answer, the link included.
            draft_s: time the draft took.
        """


@dataclass
class Fixed:
    """Always the same window.

    Args:
        window: 1…

    Raises:
        InputError: below 1.
    """

    window: int = FIRST

    def __post_init__(self) -> None:
        check_count("window", self.window)

    def learn(self, drafted: int, accepted: int, verify_s: float, draft_s: float) -> None:
        """Nothing."""


@dataclass
class Ema:
    """Grows while more than half of what is drafted stays, shrinks while less does.

    ``γ ← γ (1 + gain (ema − ½))``, ``ema`` the moving average of the share that stays. The window is rounded only when
    it is asked for: rounded at every step it would never leave where it started.

    Args:
        gain: above 0; higher follows faster.
        decay: weight of the past in the average, 0…1.
        longest: longest window, 1…
    """

    gain: float = 0.5
    decay: float = DECAY
    longest: int = LONGEST
    share: float = 0.5
    size: float = FIRST

    @property
    def window(self) -> int:
        return max(1, min(self.longest, round(self.size)))

    def learn(self, drafted: int, accepted: int, verify_s: float, draft_s: float) -> None:
        if drafted:
            self.share = self.decay * self.share + (1 - self.decay) * accepted / drafted
            self.size = max(1.0, min(float(self.longest), self.size * (1 + self.gain * (self.share - 0.5))))


@dataclass
class CostAware:
    """The window of which most tokens a second are expected, by what rounds have cost so far. Ours.

    Seconds of a verification are taken for ``f + s (γ + 1)``, of a draft for ``d γ``, tokens for ``E(α, γ)``, all four
    from the rounds so far, of which older ones count for less. The window changes by two at most.

    Args:
        longest: longest window, 1…
        decay: what a round counts for when one more has been seen, 0…1.
    """

    longest: int = LONGEST
    decay: float = DECAY
    size: int = FIRST
    _stayed: float = PRIOR * PRIOR_TOKENS
    _judged: float = PRIOR_TOKENS
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    _slope: float = 0.0
    _drafting: tuple[float, float] = (0.0, 0.0)

    @property
    def window(self) -> int:
        return self.size

    @property
    def alpha(self) -> float:
        """Chance that a drafted token stays, as far as is known."""
        return self._stayed / self._judged

    def learn(self, drafted: int, accepted: int, verify_s: float, draft_s: float) -> None:
        self._stayed += accepted
        self._judged += accepted + (accepted < drafted)
        x, sums = drafted + 1.0, self._sums
        self._sums = [
            self.decay * old + new for old, new in zip(sums, (1.0, x, verify_s, x * x, x * verify_s), strict=True)
        ]
        tokens, seconds = self._drafting
        self._drafting = (self.decay * tokens + drafted, self.decay * seconds + draft_s)
        best = max(range(1, self.longest + 1), key=self._rate)
        self.size = max(self.size - STEP, min(self.size + STEP, best))

    def _rate(self, window: int) -> float:
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if spread > 1e-6 * max(1.0, xx):
            self._slope = max(0.0, (n * xy - x * y) / spread)
        # Rounds of one window say nothing of the slope, so what is known of it stays.
        fixed = max(0.0, (y - self._slope * x) / n)
        tokens, seconds = self._drafting
        each = seconds / tokens if tokens else 0.0
        cost = fixed + self._slope * (window + 1) + each * window
        return expected_tokens(min(self.alpha, 1 - 1e-9), window) / max(cost, 1e-12)


CONTROLLERS: dict[str, Callable[[], Controller]] = {"fixed": Fixed, "ema": Ema, "cost": CostAware}
"""By name."""


class Windowed:
    """A drafter whose drafts are as long as a controller of each row says, at most.

    Under a rule that is not lossless the text depends on the windows, and these on how long things take.

    Args:
        drafter: proposes.
        controller: makes a row's.
        clock: seconds; another one in tests.
    """

    def __init__(
        self,
        drafter: Drafter,
        controller: Callable[[], Controller] = CostAware,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.drafter, self.controller, self._clock = drafter, controller, clock
        self.key = ("Windowed", getattr(drafter, "key", type(drafter).__name__))
        self._drafted, self._took = 0.0, 0.0

    def of(self, row: History) -> Controller:
        """A row's controller."""
        if self.key not in row.memory:
            row.memory[self.key] = self.controller()
        own: Controller = row.memory[self.key]
        return own

    def draft(self, rows: Sequence[Row], room: Sequence[int]) -> list[Draft]:
        start = self._clock()
        drafts = self.drafter.draft(
            rows, [min(free, self.of(row).window) for row, free in zip(rows, room, strict=True)]
        )
        self._drafted = self._clock()
        self._took = self._drafted - start
        return drafts

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        """Tell the row's controller, and the drafter inside."""
        waited = self._clock() - self._drafted
        self.of(row).learn(len(draft.tokens), verdict.accepted, waited, self._took)
        if isinstance(self.drafter, Learner):
            self.drafter.learn(row, draft, verdict)

    def read(self, rows: Sequence[Row], limit: int) -> bool:
        return self.drafter.read(rows, limit)

    def truncate(self, lengths: Sequence[int]) -> None:
        self.drafter.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        self.drafter.keep(rows)

    def join(self, other: Windowed) -> None:
        self.drafter.join(other.drafter)
