"""What benchmarks/step.py measured, as text, Markdown, a plot and numbers for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Results = dict[str, dict[str, Any]]
COLOURS = {
    "eager-fp32": "#b0b0b0",
    "eager-bf16": "#4c72b0",
    "static-fp32": "#8c564b",
    "static-bf16": "#dd8452",
    "static-int8": "#55a868",
    "static-int4": "#c44e52",
}
COMPARISONS = (("static-bf16", "eager-bf16"), ("static-int8", "static-bf16"), ("static-int8", "eager-bf16"),
               ("static-int4", "static-int8"), ("static-fp32", "eager-fp32"), ("eager-bf16", "eager-fp32"))  # fmt: skip
COLUMNS = 4


def milliseconds(entry: dict[str, Any], run: str) -> dict[str, float]:
    """Median ms by length (as text), in order of length."""
    measured = entry["runs"][run]
    return {q: measured[q]["ms"] for q in sorted(measured, key=int)}


def weights_of(run: str) -> str:
    """The format of a run's weights, which names its floor."""
    return run.rpartition("-")[2]


def floor_share(entry: dict[str, Any], run: str, q: str) -> float:
    """Floor ÷ measured: 1 would be a step that waits for nothing but memory."""
    return entry["floor_ms"][weights_of(run)] / milliseconds(entry, run)[q]


def speedups(entry: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How many times faster one run is than another at each length, by ``"faster / slower"`` names."""
    ratios = {}
    for run, against in COMPARISONS:
        if run in entry["runs"] and against in entry["runs"]:
            base = milliseconds(entry, against)
            ratios[f"{run} / {against}"] = {q: base[q] / ms for q, ms in milliseconds(entry, run).items() if q in base}
    return ratios


def summary(results: Results) -> dict[str, dict[str, Any]]:
    """Milliseconds by shape, run and length, with ``floor-FORMAT`` beside them."""
    return {
        shape: {
            **{run: milliseconds(entry, run) for run in entry["runs"]},
            **{f"floor-{weights}": round(ms, 4) for weights, ms in entry["floor_ms"].items()},
        }
        for shape, entry in results.items()
    }


def machines(results: Results) -> list[str]:
    """A line for each different machine, version or commit among the shapes."""
    lines: dict[str, list[str]] = {}
    for shape, entry in results.items():
        facts = entry["machine"]
        versions = facts["versions"]
        largest = max(entry["bandwidth"], key=int)
        line = (
            f"{facts['cpu']} ({facts['cpu_model']}; {', '.join(facts['flags'])}), {facts['threads']} threads, "
            f"torch {versions['torch']}, transformers {versions['transformers']}, "
            f"commit {facts['commit']}, {facts['date'][:10]}"
        )
        lines.setdefault(line, []).append(f"{shape} {entry['bandwidth'][largest]['best']:.1f}")
    return [f"{line}; GB/s read from memory meanwhile: {', '.join(shapes)}" for line, shapes in lines.items()]


def rows(entry: dict[str, Any]) -> list[list[str]]:
    """Cells of a shape: name, median [10th–90th percentile] ms at each length, share of the floor at the first."""
    cells = []
    for run, measured in entry["runs"].items():
        times = [_cell(measured[str(q)]) if str(q) in measured else "" for q in entry["lengths"]]
        cells.append([run, *times, f"{floor_share(entry, run, str(entry['lengths'][0])):.0%}"])
    for weights, ms in entry["floor_ms"].items():
        total = sum(entry["bytes"][weights].values())
        cells.append([f"floor-{weights}", f"{ms:.2f} ({total / 1e6:.0f} MB)", *[""] * (len(entry["lengths"]) - 1), ""])
    return cells


def plain(results: Results) -> str:
    """The tables for a terminal: times, then speedups."""
    parts = machines(results)
    for shape, entry in results.items():
        first = entry["lengths"][0]
        table = [[shape, *[f"q = {q}" for q in entry["lengths"]], f"floor ÷ q={first}"], *rows(entry)]
        parts += ["", *_aligned(table)]
        for name, ratios in speedups(entry).items():
            parts.append(f"{name}: " + "  ".join(f"q={q} ×{ratio:.2f}" for q, ratio in ratios.items()))
    return "\n".join(parts)


def render(results: Results, picture: str) -> str:
    """The section of docs/performance.md.

    Args:
        results: by shape.
        picture: the plot's address, relative to the page.
    """
    parts = ["Measured on:", "", *[f"- {line}" for line in machines(results)], ""]
    parts += [f"![Milliseconds of a forward pass by new tokens read]({picture})", ""]
    for lengths, group in _by_lengths(results).items():
        columns = ["shape", "run", *[f"q = {q}" for q in lengths], f"floor ÷ time, q = {lengths[0]}"]
        parts += ["Median ms [10th–90th percentile] of a forward pass that reads and scores q tokens:", ""]
        parts += _markdown(columns, [[shape, *row] for shape, entry in group.items() for row in rows(entry)])
        ratios = [
            [shape, name, *[f"{at[str(q)]:.2f}" if str(q) in at else "" for q in lengths]]
            for shape, entry in group.items() for name, at in speedups(entry).items()
        ]  # fmt: skip
        if ratios:
            parts += ["", "How many times as fast the first is as the second:", ""]
            parts += _markdown(["shape", "runs", *[f"q = {q}" for q in lengths]], ratios)
        parts.append("")
    return "\n".join(parts)


def plot(results: Results, path: Path) -> None:
    """A panel a shape: ms by q for each run, the floors as dashed lines.

    Args:
        results: by shape.
        path: of the picture; its ending says the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "bild"
    from matplotlib import pyplot

    columns = min(COLUMNS, len(results))
    lines = -(-len(results) // columns)
    figure, panels = pyplot.subplots(lines, columns, figsize=(3.4 * columns, 2.9 * lines), squeeze=False)
    for panel in panels.flat[len(results) :]:
        panel.set_axis_off()
    for panel, (shape, entry) in zip(panels.flat, results.items(), strict=False):
        _panel(panel, shape, entry)
    labels = {label: handle for panel in panels.flat for handle, label in zip(*panel.get_legend_handles_labels())}  # noqa: B905
    figure.legend(labels.values(), labels.keys(), loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06 if lines > 1 else 0.1, 1, 1))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _panel(panel: Any, shape: str, entry: dict[str, Any]) -> None:
    for run in entry["runs"]:
        times = milliseconds(entry, run)
        panel.plot(
            [int(q) for q in times], list(times.values()), marker="o", ms=3, lw=1.4, color=COLOURS[run], label=run
        )
    for weights, ms in entry["floor_ms"].items():
        colour = COLOURS[f"static-{weights}" if weights.startswith("int") else f"eager-{weights}"]
        panel.axhline(ms, color=colour, ls="--", lw=1, label=f"floor-{weights}")
    panel.set(title=shape, xlabel="new tokens q", ylabel="ms", xticks=entry["lengths"], ylim=(0, None))
    panel.spines[["top", "right"]].set_visible(False)


def _cell(measured: dict[str, float]) -> str:
    return f"{measured['ms']:.2f} [{measured['p10_ms']:.2f}–{measured['p90_ms']:.2f}]"


def _by_lengths(results: Results) -> dict[tuple[int, ...], Results]:
    """Shapes measured at the same lengths share a table."""
    groups: dict[tuple[int, ...], Results] = {}
    for shape, entry in results.items():
        groups.setdefault(tuple(entry["lengths"]), {})[shape] = entry
    return groups


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _markdown(columns: list[str], cells: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [columns, ["---"] * len(columns), *cells]]
