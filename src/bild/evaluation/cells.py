"""What the tables show, on the terminal and in the report: the same columns and the same words."""

from __future__ import annotations

from collections.abc import Callable

from bild.data.quality import LABELS, TASKS
from bild.evaluation.bootstrap import Estimate
from bild.evaluation.summary import MethodFigures, Summary

NOTHING = "–"
MB = 1e6
LAYERS = "layers"
"""A column that is there only if some method leaves layers out."""


def quality_metrics(task: str) -> list[str]:
    """All metrics, those of the task first."""
    return [*TASKS[task], *(name for name in LABELS if name not in TASKS[task])]


def quality_rows(summary: Summary, set_name: str, *, everything: bool) -> list[list[str]]:
    """The quality table of a set: a heading, then one row a method; empty without references.

    Args:
        summary: of the run.
        set_name: which set.
        everything: all metrics, not only those of the task.
    """
    figures = summary.sets[set_name]
    if not figures.num_with_references:
        return []
    names = quality_metrics(summary.task) if everything else list(TASKS[summary.task])
    heading = ["method"]
    for name in names:
        heading += [LABELS[name], f"Δ {LABELS[name]}"]
    rows = [
        [method, *(cell for name in names for cell in _quality_cells(values, name, method == summary.baseline))]
        for method, values in figures.methods.items()
    ]
    return [heading, *rows]


def _quality_cells(values: MethodFigures, name: str, is_baseline: bool) -> list[str]:
    return [interval(values.quality[name]), NOTHING if is_baseline else interval(values.difference[name], sign="+")]


def speed_rows(summary: Summary, set_name: str) -> list[list[str]]:
    """The table of times, counts and agreement of a set: a heading, then one row a method."""
    figures = summary.sets[set_name].methods
    skips = any(values.mean_layers is not None for values in figures.values())
    columns = {name: cell for name, cell in SPEED.items() if skips or name != LAYERS}
    rows = [["method", *columns]]
    for method, values in figures.items():
        rows.append([method, *(cell(summary, method, values) for cell in columns.values())])
    return rows


def interval(estimate: Estimate, sign: str = "") -> str:
    """``32.84 [31.20, 34.50]``."""
    if estimate.value is None:
        return NOTHING
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.2f}"
    return f"{estimate.value:{sign}.2f} [{estimate.low:{sign}.2f}, {estimate.high:{sign}.2f}]"


def _number(value: float | None, places: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{places}f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def _weights(summary: Summary, method: str, values: MethodFigures) -> str:
    held = summary.weight_bytes.get(method)
    return NOTHING if held is None else f"{held / MB:.0f}"


def _peak(summary: Summary, method: str, values: MethodFigures) -> str:
    peak = summary.peak_memory.get(method)
    if peak is None:
        return NOTHING
    if peak.cuda_bytes:
        return f"{peak.cuda_bytes / MB:.0f} (GPU)"
    above = peak.above_imports_bytes
    return f"{peak.total_bytes / MB:.0f} (all)" if above is None else f"{above / MB:.0f}"


SPEED: dict[str, Callable[[Summary, str, MethodFigures], str]] = {
    "speedup": lambda s, m, v: interval(v.speedup),
    "median ms": lambda s, m, v: _number(v.latency_median_ms),
    "p95 ms": lambda s, m, v: _number(v.latency_p95_ms),
    "ms/token": lambda s, m, v: _number(v.ms_per_token, 2),
    "first ms": lambda s, m, v: _number(v.ttft_median_ms),
    "acc. length": lambda s, m, v: _number(v.mean_acceptance_length, 2),
    "rollbacks": lambda s, m, v: _percent(v.rollback_rate),
    "by large": lambda s, m, v: _percent(v.large_share),
    LAYERS: lambda s, m, v: _number(v.mean_layers, 2),
    "same tokens": lambda s, m, v: _percent(v.same_tokens),
    "same prefix": lambda s, m, v: _percent(v.same_prefix),
    "weights MB": _weights,
    "peak MB": _peak,
}
"""Columns of the table of times and counts."""
