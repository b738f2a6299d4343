"""What a run says while it goes on: a line on stderr and one in its log."""

from __future__ import annotations

import sys
from typing import Any

from bild.training.checkpoint import RunFolder


class Progress:
    """Tells how training goes.

    Args:
        folder: whose log gets the same figures.
        steps: of the whole run; None: it ends by the clock.
    """

    def __init__(self, folder: RunFolder, steps: int | None) -> None:
        self.folder, self.steps = folder, steps

    def at(self, step: float) -> str:
        """How far the run is."""
        return f"{step:.0f}" if self.steps is None else f"{step:.0f}/{self.steps}"

    def logged(self, values: dict[str, float]) -> None:
        """A few steps have been taken."""
        self.folder.log(values)
        say(
            f"step {self.at(values['step'])} · loss {values['loss']:.3f} · lr {values['lr']:.1e} · "
            f"{values['tokens_per_second']:,.0f} target tokens/s · {duration(values['seconds_left'])} left"
        )

    def scored(self, score: dict[str, Any], *, best: bool) -> None:
        """The network has been scored on the dev sets."""
        self.folder.log({**score, "best": best})
        sets = " · ".join(f"{name} {value:.2f}" for name, value in score["sets"].items())
        kept = " · best so far, saved" if best else ""
        say(f"step {self.at(score['step'])} · dev {score['metric']}: {sets}{kept}")


def say(line: str) -> None:
    """Progress goes to stderr; results do not."""
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``"2 h 05 min"``, ``"3 min"`` or ``"12 s"``."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    return f"{seconds // 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
