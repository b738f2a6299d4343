"""Plots of a summary, as SVG that stands in an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bild.data.quality import LABELS
from bild.evaluation.summary import SetFigures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABEL_WIDTH = 28
SETTINGS: Any = {"svg.hashsalt": "bild", "svg.fonttype": "path", "font.size": 9}


def latency(seconds: Mapping[str, Sequence[float]]) -> str:
    """Box plot of the time a text, whiskers from the 5th to the 95th percentile; a data URI.

    Args:
        seconds: of every text, by method.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = [[1e3 * one for one in times] for times in seconds.values()]
        axes.boxplot(
            values,
            orientation="horizontal",
            tick_labels=[_label(name) for name in seconds],
            whis=(5, 95),
            showfliers=False,
        )
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("ms a text")
        axes.grid(axis="x", alpha=0.3)

    return _svg(draw, 1 + 0.45 * len(seconds))


def quality_and_speed(figures: SetFigures, metric: str, baseline: str) -> str:
    """Quality over speedup with 95 % intervals on both; a data URI.

    Args:
        figures: of one set, with references.
        metric: which quality.
        baseline: what the speedup refers to.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, method) in enumerate(figures.methods.items()):
            x, y = method.speedup, method.quality[metric]
            if x.value is None or y.value is None:
                continue
            errors: dict[str, Any] = {"xerr": _arms(x.value, x.low, x.high), "yerr": _arms(y.value, y.low, y.high)}
            axes.errorbar(x.value, y.value, **errors, fmt="o", color=f"C{index % 10}", label=_label(name), capsize=2)
        axes.set_xlabel(f"speedup against {baseline}")
        axes.set_ylabel(LABELS[metric])
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)

    return _svg(draw, 2 + 0.35 * max(4, len(figures.methods)))


def _arms(value: float, low: float | None, high: float | None) -> list[list[float]]:
    """Lengths to both sides; an interval of resamples may leave out the value itself."""
    if low is None or high is None:
        return [[0.0], [0.0]]
    return [[max(0.0, value - low)], [max(0.0, high - value)]]


def _label(name: str) -> str:
    """A method's name, cut into lines between its options."""
    lines = [""]
    for part in name.split(":"):
        joined = f"{lines[-1]}:{part}".lstrip(":")
        if len(joined) <= LABEL_WIDTH:
            lines[-1] = joined
        else:
            lines += [part]
    return "\n".join(line for line in lines if line)


def _svg(draw: Any, height: float) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(8.5, height), layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
