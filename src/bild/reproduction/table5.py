"""Table 5: nucleus sampling, p = 0.8."""

from __future__ import annotations

from bild.reproduction import paper, sampled
from bild.reproduction.choosing import MINIMAL_LOSS, ONE_POINT, choose, need_dev
from bild.reproduction.result import Result, table
from bild.reproduction.rows import policy_name
from bild.reproduction.workspace import Workspace
from bild.tuning.bench import LARGE

NUCLEUS = {"top_p": 0.8}
BUDGETS = {"BiLD, no loss": 0.0, "BiLD, minimal loss": MINIMAL_LOSS, "BiLD, within one point": ONE_POINT}


def compute(workspace: Workspace) -> Result:
    """Quality and speedup of sampled texts at three budgets, one table a test set."""
    need_dev(workspace, "table5")
    inputs, variant = workspace.inputs, workspace.inputs.variants[-1]
    parts, found = [_about(workspace, variant.label)], {}
    for name in workspace.names:
        policies = {row: choose(workspace, variant, name, budget).policy for row, budget in BUDGETS.items()}
        here = sampled.run(workspace, variant, policies, name, NUCLEUS)
        names = {LARGE: "large", **{row: policy_name(policy) for row, policy in policies.items()}}
        large = here[LARGE].mean
        rows = [
            [row, f"`{names[row]}`", *one.cells(), "–" if row == LARGE else f"{one.mean - large:+.2f}"]
            for row, one in here.items()
        ]
        heading = ["", "policy", f"{inputs.label}, mean (range)", "speedup", "Δ of the means"]
        parts += [f"## {name}", table(heading, rows)]
        found[name] = {row: {"policy": names[row], **one.to_dict()} for row, one in here.items()}
    parts.append(paper.quality_table(paper.TABLE5, paper.SUMMARISED))
    return Result("Table 5: nucleus sampling, p = 0.8", parts, {"variant": variant.label, "sets": found})


def _about(workspace: Workspace, label: str) -> str:
    seeds, budgets = ", ".join(map(str, workspace.inputs.seeds)), ", ".join(f"{one:g}" for one in BUDGETS.values())
    return (
        f"The {label} pair, tokens drawn from the likeliest that hold 0.8 of the probability, seeds {seeds}, every row "
        "run for real beside the large model that draws with the same seeds. Policies are the fastest that, decoding "
        f"dev greedily, lose at most {budgets} points. Mean over seeds and their range."
    )
