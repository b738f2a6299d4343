"""The paper's plot: quality against latency as a share of the large model's alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bild.tuning.search import Point, pareto

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"unaligned": "#3a923a", "aligned": "#3274a1", "early exit": "#3274a1"}
OTHERS = ("#e1812c", "#c03d3e", "#9372b2")
WIDTH, HEIGHT = 6.0, 4.4


def panels(figure: Figure, names: Sequence[str]) -> list[Axes]:
    """Axes side by side, one a set."""
    figure.set_size_inches(WIDTH * len(names), HEIGHT)
    made = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(made, names, strict=True):
        axes.set_title(name)
        axes.grid(alpha=0.3)
    return list(made)


def reference(axes: Axes, large: float, label: str) -> None:
    """The large model alone, the lines of its quality and of one point less, and the names of the axes."""
    axes.scatter([1], [large], marker="x", s=70, color="black", label="large alone", zorder=4)
    axes.axhline(large, color="black", linewidth=0.8, linestyle="--")
    axes.axhline(large - 1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel("normalised latency")
    axes.set_ylabel(label)


def cloud(axes: Axes, points: Sequence[Point], colour: str, label: str, line: bool = True) -> None:
    """All looked-up points, faint, and the front through the best of them."""
    axes.scatter(*coordinates(points), s=9, color=colour, alpha=0.25, linewidths=0, label=None if line else label)
    if line:
        front = pareto(points)
        axes.plot(*coordinates(front), marker="o", markersize=3, color=colour, label=label)


def stars(axes: Axes, measured: Sequence[tuple[float, float]], colour: str, label: str) -> None:
    """Points that were run for real: normalised latency and quality of each."""
    x, y = [latency for latency, _ in measured], [quality for _, quality in measured]
    axes.scatter(x, y, marker="*", s=110, color=colour, edgecolors="black", label=f"{label} (measured)", zorder=5)


def coordinates(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Normalised latency and quality; each point is of one set."""
    return [1 / point.speedup for point in points], [next(iter(point.quality.values())) for point in points]


def finish(axes: Axes, large: float, lowest: float, **legend: Any) -> None:
    """Leave out what is far worse than anything of interest, and name what is shown."""
    axes.set_ylim(bottom=max(axes.get_ylim()[0], min(lowest, large - 1.5) - 0.5))
    axes.legend(frameon=False, fontsize=8, **legend)
