"""Draft lengths that follow what is gained by them: tokens a second, from what rounds cost and what became of drafts.

Acceptance alone says nothing of it: drafts are as good under load, but reading them then costs what they save.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from bild.decoding.commits import Commit
from bild.decoding.presets import DEFAULT_MAX_DRAFT_TOKENS

REMEMBERED = 256
"""Rounds that costs are fitted to."""
LEAST = 16
"""Rounds before anything is chosen, and between two choices."""
PROBE = 64
"""Every so many rounds one is drafted a token longer or shorter than chosen."""
GAIN = 1.05
"""How much better another window must be, twice in a row, before it is taken."""
FADE = 0.99
"""Weight of what was known of drafts when a round has been seen."""
OPEN = ("window", "length")
"""Reasons for which a drafter stops though it would have gone on."""


class Goodput:
    """Picks the window that promises most tokens a second for the number of rows there are.

    A round's seconds are fitted as: a round, a token drafted by any row, the same times the rows, and a token read by
    the large model. What a window yields follows from how often drafts get to each position, and stay up to it. At
    window 0 the small model is not touched.

    Args:
        longest: window up to which lengths are chosen, 1…; at that one drafts are as long as the policies say.
    """

    learns = True

    def __init__(self, longest: int = DEFAULT_MAX_DRAFT_TOKENS) -> None:
        self.longest = longest
        self._rounds: deque[tuple[list[float], float]] = deque(maxlen=REMEMBERED)
        self._costs: list[float] | None = None
        self._reached, self._kept = Shares(longest), Shares(longest)
        self._chosen: dict[int, int] = {}
        self._better: dict[int, tuple[int, int]] = {}
        self._count = 0

    def window(self, rows: int) -> int | None:
        chosen = self._near(rows)
        if self._costs is not None and self._count % PROBE == 0:
            # Up and down in turn; at an end there is one way.
            step = 1 if chosen == 0 or (chosen < self.longest and self._count % (2 * PROBE) == 0) else -1
            chosen += step
        return None if chosen >= self.longest else chosen

    def learn(self, rows: int, window: int | None, commits: Sequence[Commit], seconds: float) -> None:
        self._count += 1
        self._rounds.append((_features(commits), seconds))
        for commit in commits:
            self._watch(commit)
        if self._count % LEAST == 0:
            self._costs = _fit(self._rounds)
            self._choose(rows)

    def expected(self, rows: int, window: int) -> float:
        """Tokens a second that rounds of this window promise; 0 before any costs are known."""
        if self._costs is None:
            return 0.0
        reached = stayed = 1.0
        tokens, drafted, read = 1.0, 0.0, 1.0
        for at in range(window):
            # A pass is made as long as one row drafts on.
            drafted += 1 - (1 - reached) ** rows
            reached *= self._reached[at]
            stayed *= self._reached[at] * self._kept[at]
            tokens, read = tokens + stayed, read + reached
        seconds = sum(
            cost * count for cost, count in zip(self._costs, [1, drafted, drafted * rows, read * rows], strict=True)
        )
        return rows * tokens / seconds if seconds > 0 else 0.0

    def _near(self, rows: int) -> int:
        """What was chosen for so many rows, or for the number next to it."""
        if not self._chosen:
            return self.longest
        return self._chosen[min(self._chosen, key=lambda known: (abs(known - rows), known))]

    def _choose(self, rows: int) -> None:
        now = self._near(rows)
        promised = [self.expected(rows, window) for window in range(self.longest + 1)]
        best = max(range(self.longest + 1), key=lambda window: promised[window])
        if promised[best] <= GAIN * promised[now]:
            self._better.pop(rows, None)
            return
        before, times = self._better.get(rows, (best, 0))
        # Twice in a row something was clearly better; of what, may still have moved by a token.
        self._better[rows] = (best, times + 1)
        if times and abs(before - best) <= 1:
            self._chosen[rows] = best
            del self._better[rows]

    def _watch(self, commit: Commit) -> None:
        """How far a draft got, and how far it stayed."""
        if commit.reason is None:
            return
        length = len(commit.draft)
        for at in range(min(length, self.longest)):
            self._reached.add(at, True)
            if at <= commit.accepted:
                self._kept.add(at, at < commit.accepted)
        if length < self.longest and commit.reason not in OPEN:
            self._reached.add(length, False)


class Shares:
    """How often something happens at each position of a draft; older drafts weigh less.

    Args:
        positions: of the longest draft.
    """

    def __init__(self, positions: int) -> None:
        # As if it had been seen to happen once: what is not known is tried.
        self._happened, self._seen = [0.9] * positions, [1.0] * positions

    def __getitem__(self, position: int) -> float:
        return self._happened[position] / self._seen[position]

    def add(self, position: int, happened: bool) -> None:
        """Take one draft into account."""
        self._happened[position] = FADE * self._happened[position] + happened
        self._seen[position] = FADE * self._seen[position] + 1


def _features(commits: Sequence[Commit]) -> list[float]:
    """What a round is charged for: itself, drafting passes, these times the rows, tokens the large model reads."""
    drafted = max(len(commit.draft) + (commit.doubtful is not None) for commit in commits)
    read = sum(len(commit.draft) + 1 for commit in commits if commit.verified)
    return [1.0, float(drafted), float(drafted * len(commits)), float(read)]


def _fit(rounds: Sequence[tuple[list[float], float]]) -> list[float]:
    """Seconds of each feature by least squares, none of them negative."""
    table = torch.tensor([features for features, _ in rounds], dtype=torch.float64)
    times = torch.tensor([seconds for _, seconds in rounds], dtype=torch.float64)
    used = list(range(table.shape[1]))
    while True:
        weights = torch.linalg.lstsq(table[:, used], times[:, None], driver="gelsd").solution[:, 0]
        if bool((weights >= 0).all()) or len(used) == 1:
            break
        del used[int(weights.argmin())]
    found = dict(zip(used, weights.clamp(min=0).tolist(), strict=True))
    return [found.get(at, 0.0) for at in range(table.shape[1])]
