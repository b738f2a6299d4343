"""The Pareto front as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bild.data.files import write_whole
from bild.errors import writing
from bild.evaluation.figures import ALL
from bild.tuning.agreement import label_of
from bild.tuning.search import Point
from bild.tuning.tuned import Tuning


def draw(found: Tuning, file: Path) -> None:
    """Worst loss of any set over speedup: what was looked up, the front, and what was run.

    Args:
        found: by tuning.
        file: of a PNG.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*_xy(found.points), s=8, color="#b9c4d0", label="looked up (predicted speedup)")
    axes.plot(*_xy(found.front), marker=".", color="#4c72b0", label="front")
    whole = found.summary.sets.get(ALL) or next(iter(found.summary.sets.values()))
    for finalist in found.finalists:
        chosen = finalist is found.chosen
        axes.scatter(
            np.array([whole.methods[finalist.method].speedup.value]),
            [max(finalist.loss.values())],
            marker="*" if chosen else "x",
            s=120 if chosen else 40,
            color="#c44e52",
            label="chosen (measured)" if chosen else None,
            zorder=3,
        )
    axes.axhline(found.budget, color="#c44e52", linestyle=":", linewidth=1, label=f"budget {found.budget:g}")
    axes.axvline(1, color="black", linewidth=0.5)
    axes.invert_yaxis()
    axes.set_xlabel("speedup against the large model alone")
    axes.set_ylabel(f"{label_of(found.metric)} lost on the worst set")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    with writing(file):
        write_whole(file, drawn.getvalue())


def _xy(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.speedup for point in points], [point.worst_loss for point in points]
