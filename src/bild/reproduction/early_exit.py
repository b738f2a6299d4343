"""Figures 6 and 7: the first layers of a model as its small model, alone and against CALM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from bild.decoding import Policy
from bild.evaluation.method import Method
from bild.reproduction import plots, table1
from bild.reproduction.choosing import choose
from bild.reproduction.grids import SMALL_ALONE, paper_grid
from bild.reproduction.inputs import Inputs, Variant
from bild.reproduction.result import Result, table
from bild.reproduction.rows import figures
from bild.reproduction.tradeoffs import LATENCIES, LOOKED_UP, Curves, at_equal_latency
from bild.reproduction.workspace import Workspace
from bild.tuning.bench import LARGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FALLBACK = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
ROLLBACK = (0.5, 0.75, 1.0, 1.25, 1.5)
THRESHOLDS = (0.7, 0.8, 0.9, 0.95, 0.98)
DECAYS = (0.0, 1.0, 2.0, 4.0, 8.0)
CALM_TEXTS = 100
"""Of each set: every CALM point is run for real, uncompiled."""
NO_EXIT = "the whole figure (--exit-model FOLDER:LAYERS is not given)"
NO_CALM = "the whole figure (--exit-model FOLDER:LAYERS and --calm-model FOLDER must both be given)"
TITLE6, TITLE7 = "Figure 6: early exit", "Figure 7: early exit against CALM"


def grid() -> list[Policy]:
    """The paper's ranges for early exit (section 7.2.1)."""
    return paper_grid(FALLBACK, ROLLBACK)


def figure6(workspace: Workspace) -> Result:
    """BiLD with the first layers of a model as the small one."""
    inputs, variant = workspace.inputs, workspace.inputs.exit_variant
    if variant is None:
        return Result(TITLE6, [], {}, missing=[NO_EXIT])
    curves = _curves(workspace, variant)
    run = {name: _run(workspace, variant, name) for name in workspace.names} if inputs.dev else {}

    def draw(figure: Figure) -> None:
        for axes, (name, here) in zip(plots.panels(figure, workspace.names), curves.items(), strict=True):
            plots.reference(axes, here.large, inputs.label)
            plots.cloud(axes, here.points["BiLD"], plots.COLOURS[variant.label], "BiLD (looked up)")
            axes.scatter(*plots.coordinates(here.points["exit alone"]), marker="v", label="exit alone (looked up)")
            if name in run:
                measured = [*table1.coordinates(run[name], name, inputs.metric).values()]
                plots.stars(axes, measured, plots.COLOURS[variant.label], "chosen on dev")
            plots.finish(axes, here.large, min(plots.coordinates(here.points["BiLD"])[1]))

    about = (
        f"One model, `{inputs.early_exit}`: its first layers are the small model, the whole of it the large one. "
        f"Algorithm 1, fallback thresholds {FALLBACK[0]:g} to {FALLBACK[-1]:g}, rollback thresholds {ROLLBACK[0]:g} to "
        f"{ROLLBACK[-1]:g}. {LOOKED_UP} In the paper up to 1.60× and 1.74× within one BLEU."
    )
    tables = [f"## {name}, run for real\n\n" + here.table(name, inputs.metric) for name, here in run.items()]
    values = {
        "sets": {name: here.to_dict() for name, here in curves.items()},
        "measured": {name: here.values(name, inputs.metric) for name, here in run.items()},
    }
    return Result(TITLE6, [about, at_equal_latency(curves, inputs.label), *tables], values, draw)


def _curves(workspace: Workspace, variant: Variant) -> dict[str, Curves]:
    grids = {"BiLD": grid(), "exit alone": [SMALL_ALONE]}
    return {
        name: Curves(
            workspace.quality_of_large(variant, name),
            {curve: workspace.points(variant, name, policies) for curve, policies in grids.items()},
        )
        for name in workspace.names
    }


def _run(workspace: Workspace, variant: Variant, name: str) -> table1.Measured:
    return table1.run_chosen(workspace, [variant], name, partial(choose, grid=grid()))


@dataclass(frozen=True)
class Left:
    """CALM at one setting on one set."""

    threshold: float
    decay: float
    latency: float
    quality: float
    layers: float | None
    """Decoder layers run a token."""


def figure7(workspace: Workspace) -> Result:
    """Both ways of leaving early, uncompiled: CALM cannot be compiled."""
    if workspace.inputs.early_exit is None or workspace.inputs.calm is None:
        return Result(TITLE7, [], {}, missing=[NO_CALM])
    workspace = workspace.with_inputs(_fewer(workspace.inputs))
    inputs, variant = workspace.inputs, workspace.inputs.exit_variant
    assert variant is not None
    curves, calm = _curves(workspace, variant), {name: _calm(workspace, name) for name in workspace.names}

    def draw(figure: Figure) -> None:
        for axes, (name, here) in zip(plots.panels(figure, workspace.names), curves.items(), strict=True):
            plots.reference(axes, here.large, inputs.label)
            plots.cloud(axes, here.points["BiLD"], plots.COLOURS[variant.label], "BiLD (looked up)")
            whole, left = calm[name]
            axes.scatter([1], [whole], marker="x", s=70, color=plots.OTHERS[0], label="CALM, no exit")
            for decay in DECAYS:
                own = [(one.latency, one.quality) for one in left if one.decay == decay]
                axes.plot(*zip(*own, strict=True), marker="o", markersize=3, color=plots.OTHERS[0], alpha=0.7,
                          label="CALM, a curve a decay (measured)" if decay == DECAYS[0] else None)  # fmt: skip
            lowest = min([*plots.coordinates(here.points["BiLD"])[1], *(one.quality for one in left)])
            plots.finish(axes, here.large, lowest)

    about = (
        f"The first {CALM_TEXTS} texts of each set, eager on both sides. BiLD: `{inputs.early_exit}`, looked up. CALM: "
        f"`{inputs.calm}`, thresholds {THRESHOLDS[0]:g} to {THRESHOLDS[-1]:g}, decays "
        f"{', '.join(f'{decay:g}' for decay in DECAYS)}, every point run for real. The two models are trained "
        "differently: each one's latency 1 is that model without an exit. In the paper BiLD is up to 2 to 2.5 BLEU "
        "better at equal speed."
    )
    values = {name: {**curves[name].to_dict(), "calm": {"whole": whole, "points": [asdict(one) for one in left]}}
              for name, (whole, left) in calm.items()}  # fmt: skip
    parts = [about, at_equal_latency(curves, inputs.label), _table(calm, inputs.label)]
    return Result(TITLE7, parts, {"sets": values}, draw)


def _fewer(inputs: Inputs) -> Inputs:
    few = {name: list(members)[:CALM_TEXTS] for name, members in inputs.test.items()}
    return replace(inputs, test=few, dev={}, setup=replace(inputs.setup, runtime="eager"))


def _calm(workspace: Workspace, name: str) -> tuple[float, list[Left]]:
    """Quality without an exit, and every setting."""
    settings = {f"calm:threshold={high:g}:decay={decay:g}": (high, decay) for decay in DECAYS for high in THRESHOLDS}
    inputs = workspace.inputs
    assert inputs.calm is not None
    variant = Variant("CALM", inputs.calm, inputs.calm, "eager")
    described = {method: {"pair": variant.describe()} for method in (LARGE, *settings)}
    summary = workspace.evaluate(lambda: _methods(workspace, variant, settings), described, name)
    found = []
    for method, setting in settings.items():
        own = figures(summary, method, name)
        speedup, quality = own.speedup.value, own.quality[inputs.metric].value
        assert speedup is not None and quality is not None
        found.append(Left(*setting, 1 / speedup, quality, own.mean_layers))
    whole = figures(summary, LARGE, name).quality[inputs.metric].value
    assert whole is not None
    return whole, found


def _methods(workspace: Workspace, variant: Variant, settings: Mapping[str, tuple[float, float]]) -> list[Method]:
    from bild.evaluation.calm import CalmMethod
    from bild.models import ExitRule

    decoder, longest = workspace.decoder(variant), workspace.inputs.setup.max_new_tokens
    whole = workspace.bench(variant, {}).method(LARGE, Policy.large())
    rules = {
        name: ExitRule(threshold=high, decay=decay, max_tokens=longest) for name, (high, decay) in settings.items()
    }
    return [whole, *(CalmMethod(name, decoder, rule, workspace.options) for name, rule in rules.items())]


def _table(calm: Mapping[str, tuple[float, Sequence[Left]]], label: str) -> str:
    """The best quality of CALM by latency."""
    rows = []
    for name, (whole, left) in calm.items():
        best = [max((one.quality for one in left if one.latency <= at), default=None) for at in LATENCIES]
        rows.append([name, "CALM", *("–" if one is None else f"{one:.2f}" for one in best), f"{whole:.2f}"])
    heading = ["", "", *(f"≤ {at:g}" for at in LATENCIES), "no exit, at 1"]
    return f"CALM, best {label} at a normalised latency of at most:\n\n" + table(heading, rows)
