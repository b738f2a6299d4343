"""Figure 8: arithmetic, memory traffic and arithmetic intensity of BiLD and of the large model alone, by counting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bild.decoding import Policy
from bild.reproduction import plots, table1
from bild.reproduction.choosing import need_dev
from bild.reproduction.counting import Cost, Counter, cost_of
from bild.reproduction.inputs import Variant
from bild.reproduction.result import Result, table
from bild.reproduction.rows import figures, policy_name
from bild.reproduction.workspace import Workspace
from bild.tuning.bench import LARGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 32
"""Rows decoded together; counts are of batch 1, and a row does not depend on its neighbours."""
BARS = ("FLOPs", "memory operations", "arithmetic intensity", "speedup")


def counted(workspace: Workspace, variant: Variant, policy: Policy, name: str) -> tuple[Cost, Cost]:
    """Of a test set: reading the sources, and decoding."""
    inputs, decoder = workspace.inputs, workspace.decoder(variant)
    sources = [inputs.prefix + example.source for example in inputs.test[name]]
    jobs = decoder.jobs(sources, **workspace.options)
    results = decoder.generate(sources, policy, batch_size=BATCH, **workspace.options)
    counters: dict[Literal["small", "large"], Counter] = {
        "small": Counter(decoder.small.network),
        "large": Counter(decoder.large.network),
    }
    each = [
        cost_of(result.rounds, len(job.request.prompt), len(job.source), counters)
        for job, result in zip(jobs, results, strict=True)
    ]
    return sum((reading for reading, _ in each), Cost()), sum((decoding for _, decoding in each), Cost())


def compute(workspace: Workspace) -> Result:
    """Operations, bytes and their quotient of BiLD over those of the large model alone, as bars."""
    need_dev(workspace, "figure8")
    rows, found, row = [], {}, table1.best_row(workspace.inputs)
    for name in workspace.names:
        here = table1.measured(workspace, name)
        variant, policy = here.rows[row].variant, here.rows[row].policy
        costs = {"large": counted(workspace, variant, Policy.large(), name),
                 "bild": counted(workspace, variant, policy, name)}  # fmt: skip
        speedup = figures(here.summary, row, name).speedup.value
        found[name] = _values(costs, speedup, len(workspace.inputs.test[name])) | {"policy": policy_name(policy)}
        rows += _rows(name, found[name], here, workspace.inputs.metric, row)

    def draw(figure: Figure) -> None:
        for axes, name in zip(plots.panels(figure, workspace.names), workspace.names, strict=True):
            values = [found[name]["normalised"][bar] for bar in BARS]
            axes.bar([at - 0.2 for at in range(len(BARS))], [1] * len(BARS), 0.4, color="#b9c4d0", label="large alone")
            bars = axes.bar([at + 0.2 for at in range(len(BARS))], values, 0.4, color="#3274a1", label=f"BiLD, {row}")
            axes.bar_label(bars, fmt="%.2f", fontsize=8)
            axes.set_xticks(range(len(BARS)), BARS, fontsize=8)
            axes.set_ylabel("large alone = 1")
            axes.legend(frameon=False, fontsize=8)

    heading = ["", "", "quality", "GFLOPs a text", "MB moved a text", "FLOPs a byte", "of it decoding: GFLOPs", "MB"]
    about = (
        f"The policy of Table 1's row *{row}* against the large model alone. FLOPs and bytes are counted from the "
        "passes of every test text (docs/reproduce.md has the formulas), sources included; the speedup is the measured "
        "one. Bars are divided by those of the large model alone. In the paper, at equal quality on CNN/DM: FLOPs "
        "slightly up, memory operations about 5× down, arithmetic intensity about 5× up, 1.85× as fast."
    )
    return Result("Figure 8: FLOPs, memory operations and arithmetic intensity",
                  [about, table(heading, rows), *map(_said, found, found.values())],
                  {"row": row, "sets": found}, draw)  # fmt: skip


def _values(costs: dict[str, tuple[Cost, Cost]], speedup: float | None, texts: int) -> dict[str, Any]:
    whole = {side: reading + decoding for side, (reading, decoding) in costs.items()}
    decoding = {side: cost for side, (_, cost) in costs.items()}
    return {
        "a_text": {
            side: {"flops": whole[side].flops / texts, "bytes": whole[side].moved / texts,
                   "intensity": whole[side].intensity, "decoding_flops": decoding[side].flops / texts,
                   "decoding_bytes": decoding[side].moved / texts}
            for side in costs
        },
        "normalised": {**_normalised(whole), "speedup": speedup},
        "normalised_decoding": _normalised(decoding),
    }  # fmt: skip


def _normalised(costs: dict[str, Cost]) -> dict[str, float]:
    large, bild = costs["large"], costs["bild"]
    return {"FLOPs": bild.flops / large.flops, "memory operations": bild.moved / large.moved,
            "arithmetic intensity": bild.intensity / large.intensity}  # fmt: skip


def _rows(name: str, found: dict[str, Any], here: table1.Measured, metric: str, row: str) -> list[list[str]]:
    lines = []
    for side, method in (("large", LARGE), ("bild", row)):
        own, quality = found["a_text"][side], figures(here.summary, method, name).quality[metric].value
        numbers = (own["flops"] / 1e9, own["bytes"] / 1e6, own["intensity"], own["decoding_flops"] / 1e9,
                   own["decoding_bytes"] / 1e6)  # fmt: skip
        lines.append([name, method, f"{quality:.2f}", *(f"{number:.2f}" for number in numbers)])
    return lines


def _said(name: str, found: dict[str, Any]) -> str:
    all_of_it, decoding = found["normalised"], found["normalised_decoding"]
    return (
        f"{name} (`{found['policy']}`): FLOPs × {all_of_it['FLOPs']:.2f}, memory operations ÷ "
        f"{1 / all_of_it['memory operations']:.2f}, arithmetic intensity × {all_of_it['arithmetic intensity']:.2f}; "
        f"without reading the source × {decoding['FLOPs']:.2f}, ÷ {1 / decoding['memory operations']:.2f}, "
        f"× {decoding['arithmetic intensity']:.2f}."
    )
