"""Figures 4, 5 and 10: quality against latency over the paper's thresholds, looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bild.decoding import LowConfidence, WithinDistance
from bild.reproduction import plots, table1
from bild.reproduction.grids import (
    FALLBACK,
    ROLLBACK,
    SMALL_ALONE,
    WINDOWS,
    paper_grid,
    without_fallback,
    without_rollback,
)
from bild.reproduction.result import Result, table
from bild.reproduction.rows import point_values
from bild.reproduction.workspace import Workspace
from bild.tuning.search import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LATENCIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FALLBACKS, ROLLBACKS = (f"{values[0]:g} to {values[-1]:g}" for values in (FALLBACK, ROLLBACK))
NO_ALIGNED = "the aligned curve (--aligned SMALL is not given)"
LOOKED_UP = (
    "Quality and counts of every point are those of a run, looked up; its latency is predicted from the counts by a "
    "cost model fitted to runs on this machine. Latency 1 is the large model alone."
)


@dataclass(frozen=True)
class Curves:
    """Looked-up points of one set, by the name of their curve."""

    large: float
    """Quality of the large model alone."""
    points: Mapping[str, Sequence[Point]]

    def best(self, curve: str, latency: float) -> float | None:
        """Best quality of a curve at this normalised latency or less."""
        within = [point for point in self.points[curve] if 1 / point.speedup <= latency]
        return max(plots.coordinates(within)[1], default=None)

    def to_dict(self) -> dict[str, Any]:
        return {"large": self.large, **{name: [*map(point_values, points)] for name, points in self.points.items()}}


def at_equal_latency(curves: Mapping[str, Curves], label: str) -> str:
    """A table of the best quality of every curve by latency."""
    rows = []
    for name, here in curves.items():
        for curve in here.points:
            values = [here.best(curve, latency) for latency in LATENCIES]
            rows.append([name, curve, *("–" if value is None else f"{value:.2f}" for value in values)])
        rows.append([name, "large alone, at 1", *[f"{here.large:.2f}"] * len(LATENCIES)])
    heading = ["", "", *(f"≤ {latency:g}" for latency in LATENCIES)]
    return f"Best {label} at a normalised latency of at most:\n\n" + table(heading, rows)


def figure4(workspace: Workspace) -> Result:
    """Quality over latency of the aligned and the unaligned pair, over the grid of thresholds."""
    inputs = workspace.inputs
    curves = {}
    for name in workspace.names:
        points = {v.label: workspace.points(v, name, paper_grid()) for v in inputs.variants}
        small = {f"{v.label} small alone": workspace.points(v, name, [SMALL_ALONE]) for v in inputs.variants}
        curves[name] = Curves(workspace.quality_of_large(inputs.variants[0], name), points | small)
    run: dict[str, dict[str, tuple[float, float]]] = {}
    for name in workspace.names if inputs.dev else []:
        run[name] = table1.coordinates(table1.measured(workspace, name), name, inputs.metric)

    def draw(figure: Figure) -> None:
        for axes, (name, here) in zip(plots.panels(figure, workspace.names), curves.items(), strict=True):
            plots.reference(axes, here.large, inputs.label)
            for variant in inputs.variants:
                colour = plots.COLOURS[variant.label]
                plots.cloud(axes, here.points[variant.label], colour, f"{variant.label} (looked up)")
                alone = plots.coordinates(here.points[f"{variant.label} small alone"])
                axes.scatter(*alone, marker="v", color=colour, label=f"{variant.label} small alone (looked up)")
                own = [xy for row, xy in run.get(name, {}).items() if row.startswith(f"{variant.label},")]
                if own:
                    plots.stars(axes, own, colour, f"{variant.label}, Table 1")
            plots.finish(axes, here.large, min(plots.coordinates(here.points[inputs.variants[0].label])[1]))

    about = (
        f"Algorithm 1 at fallback thresholds {FALLBACKS} and rollback thresholds {ROLLBACKS}. {LOOKED_UP} Stars are "
        "the points of Table 1, measured; they were chosen on dev, from more policies than are drawn."
    )
    values = {"sets": {name: here.to_dict() for name, here in curves.items()}, "measured": run}
    title = "Figure 4: quality against latency, aligned and unaligned"
    return Result(title, [about, at_equal_latency(curves, inputs.label)], values, draw,
                  missing=[] if inputs.aligned else [NO_ALIGNED])  # fmt: skip


def figure5(workspace: Workspace) -> Result:
    """Quality over latency without the fallback policy, and without the rollback policy."""
    inputs, variant = workspace.inputs, workspace.inputs.variants[-1]
    grids = {"BiLD": paper_grid(), "no rollback": without_rollback(), "no fallback": without_fallback()}
    curves = {
        name: Curves(
            workspace.quality_of_large(variant, name),
            {curve: workspace.points(variant, name, grid) for curve, grid in grids.items()},
        )
        for name in workspace.names
    }

    def draw(figure: Figure) -> None:
        colours = dict(zip(grids, (plots.COLOURS[variant.label], *plots.OTHERS), strict=False))
        for axes, (_, here) in zip(plots.panels(figure, workspace.names), curves.items(), strict=True):
            plots.reference(axes, here.large, inputs.label)
            for curve, points in here.points.items():
                plots.cloud(axes, points, colours[curve], f"{curve} (looked up)")
            plots.finish(axes, here.large, min(plots.coordinates(here.points["BiLD"])[1]))

    about = (
        f"The {variant.label} pair. BiLD and *no rollback* at the same fallback thresholds ({FALLBACKS}), BiLD and "
        f"*no fallback* at the same rollback thresholds ({ROLLBACKS}); without fallback the small model hands over "
        f"after {WINDOWS[0]} to {WINDOWS[-1]} tokens. {LOOKED_UP} Lines are fronts. In the paper both ablations are "
        "clearly worse."
    )
    values = {"variant": variant.label, "sets": {name: here.to_dict() for name, here in curves.items()}}
    return Result("Figure 5: without rollback, without fallback",
                  [about, at_equal_latency(curves, inputs.label)], values, draw)  # fmt: skip


def figure10(workspace: Workspace) -> Result:
    """A curve a rollback threshold, a point a fallback threshold."""
    inputs, variant = workspace.inputs, workspace.inputs.variants[-1]
    curves = {}
    for name in workspace.names:
        points = workspace.points(variant, name, paper_grid())
        by_rollback = {f"rollback {far:g}": [p for p in points if _thresholds(p)[1] == far] for far in ROLLBACK}
        curves[name] = Curves(workspace.quality_of_large(variant, name), by_rollback)

    def draw(figure: Figure) -> None:
        from matplotlib import colormaps

        colours = colormaps["viridis"]
        for axes, (_, here) in zip(plots.panels(figure, workspace.names), curves.items(), strict=True):
            plots.reference(axes, here.large, inputs.label)
            for at, (curve, points) in enumerate(here.points.items()):
                x, y = plots.coordinates(points)
                colour = colours(at / max(1, len(ROLLBACK) - 1))
                axes.plot(x, y, linewidth=0.8, color=colour)
                axes.scatter(x, y, s=[60 * _thresholds(p)[0] ** 2 + 4 for p in points], color=colour, label=curve)
            plots.finish(axes, here.large, min(min(plots.coordinates(p)[1]) for p in here.points.values()), ncols=2)

    about = (
        f"The {variant.label} pair, Algorithm 1. A curve a rollback threshold; its points are fallback thresholds "
        f"{FALLBACKS} (the larger, the larger the mark). {LOOKED_UP} In the paper a lower rollback threshold is better "
        "and slower; a lower fallback threshold is faster and worse, until it hurts both."
    )
    values = {"variant": variant.label, "sets": {name: here.to_dict() for name, here in curves.items()}}
    grids = [_grid(name, here) for name, here in curves.items()]
    return Result("Figure 10: both thresholds", [about, *grids], values, draw)


def _grid(name: str, here: Curves) -> str:
    """Quality and latency of every point: a row a rollback threshold."""
    rows = [
        [curve, *(f"{next(iter(p.quality.values())):.2f} · {1 / p.speedup:.2f}" for p in points)]
        for curve, points in here.points.items()
    ]
    heading = ["", *(f"fallback {low:g}" for low in FALLBACK)]
    return f"## {name}\n\nQuality · normalised latency:\n\n" + table(heading, rows)


def _thresholds(point: Point) -> tuple[float, float]:
    hand_over, acceptance = point.policy.hand_over, point.policy.acceptance
    assert isinstance(hand_over, LowConfidence) and isinstance(acceptance, WithinDistance)
    return hand_over.threshold, acceptance.threshold
