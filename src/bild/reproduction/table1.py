"""Table 1: quality and speedup of points chosen on dev, run on test beside the large model alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bild.decoding import Policy
from bild.evaluation.summary import Summary
from bild.reproduction import paper
from bild.reproduction.choosing import MINIMAL_LOSS, ONE_POINT, choose, need_dev
from bild.reproduction.inputs import Inputs, Variant
from bild.reproduction.result import Result, table
from bild.reproduction.rows import HEADING, cells, figures, policy_name, values
from bild.reproduction.workspace import Row, Workspace
from bild.tuning.bench import LARGE
from bild.tuning.costs import CostModel
from bild.tuning.search import Point

BUDGETS = {"minimal loss": MINIMAL_LOSS, "within one point": ONE_POINT}
Choice = Callable[[Workspace, Variant, str, float], Point]
NO_ALIGNED = "the aligned rows (--aligned SMALL is not given)"


@dataclass(frozen=True)
class Measured:
    """The rows of one set."""

    summary: Summary
    rows: dict[str, Row]
    chosen: dict[str, Point]
    """What dev said of them."""

    def table(self, name: str, metric: str) -> str:
        """Markdown, one row a policy."""
        return table([*HEADING, "dev: Δ, predicted speedup"], [_line(self, row, name, metric) for row in self.rows])

    def values(self, name: str, metric: str) -> dict[str, object]:
        """The same as JSON values, by row."""
        return {row: _values(self, row, name, metric) for row in self.rows}


def measured(workspace: Workspace, name: str) -> Measured:
    """Choose on dev, run on test."""
    return run_chosen(workspace, workspace.inputs.variants, name, choose)


def run_chosen(workspace: Workspace, variants: Sequence[Variant], name: str, choice: Choice) -> Measured:
    """The large model alone and, of every pair, the small model alone and a policy for each budget.

    Args:
        workspace: of the run.
        variants: pairs of one large model.
        name: of the set.
        choice: the policy of a budget.
    """
    chosen: dict[str, Point] = {}
    rows: dict[str, Row] = {LARGE: Row(LARGE, variants[0], Policy.large())}
    for variant in variants:
        small = f"{variant.label} small alone"
        rows[small] = Row(small, variant, Policy.small())
        for label, budget in BUDGETS.items():
            row = f"{variant.label}, {label}"
            chosen[row] = choice(workspace, variant, name, budget)
            rows[row] = Row(row, variant, chosen[row].policy)
    return Measured(workspace.run(list(rows.values()), name), rows, chosen)


def compute(workspace: Workspace) -> Result:
    """Quality and speedup of each pair at two budgets, one table a test set."""
    need_dev(workspace, "table1")
    inputs = workspace.inputs
    parts, found = [_about()], {}
    for name in workspace.names:
        here = measured(workspace, name)
        parts += [f"## {name}, {inputs.label}", here.table(name, inputs.metric)]
        found[name] = here.values(name, inputs.metric)
    ratios = {variant.label: workspace.costs(variant) for variant in inputs.variants}
    parts += [_ratios(ratios), paper.quality_table(paper.TABLE1, paper.SETS)]
    costs = {label: {"ratio": one.cost_ratio, "ms": one.to_dict()} for label, one in ratios.items()}
    missing = [] if inputs.aligned else [NO_ALIGNED]
    return Result("Table 1: quality and speedup", parts, {"sets": found, "costs": costs}, missing=missing)


def _about() -> str:
    return (
        "Every row was run for real on the test set, text by text in turn with the large model alone, which the "
        "speedup and Δ refer to. Policies are the fastest that, looked up on dev, lose at most "
        f"{MINIMAL_LOSS:g} (minimal loss) or {ONE_POINT:g} points (within one point). 95 % intervals of a paired "
        "bootstrap over texts in brackets."
    )


def _line(here: Measured, row: str, name: str, metric: str) -> list[str]:
    on_dev = here.chosen.get(row)
    said = "–" if on_dev is None else f"{-on_dev.worst_loss:+.2f}, {on_dev.speedup:.2f}×"
    return [*cells(here.summary, row, name, metric, policy_name(here.rows[row].policy)), said]


def _values(here: Measured, row: str, name: str, metric: str) -> dict[str, object]:
    on_dev = here.chosen.get(row)
    dev = None if on_dev is None else {"loss": on_dev.worst_loss, "predicted_speedup": on_dev.speedup}
    policy = here.rows[row].policy
    return {"policy": policy.to_dict(), "name": policy_name(policy), "dev": dev,
            **values(here.summary, row, name, metric)}  # fmt: skip


def _ratios(costs: Mapping[str, CostModel]) -> str:
    said = [f"{label}: {one.cost_ratio:.2f}" for label, one in costs.items() if one.cost_ratio is not None]
    return f"Cost of a step of the small model ÷ of the large one on this machine: {', '.join(said) or 'unknown'}."


def best_row(inputs: Inputs) -> str:
    """The row that other items look at closely: minimal loss, aligned where there is an aligned model."""
    return f"{inputs.variants[-1].label}, minimal loss"


def chosen_row(workspace: Workspace, name: str, row: str) -> Row:
    """One row as it is run."""
    return measured(workspace, name).rows[row]


def coordinates(here: Measured, name: str, metric: str) -> dict[str, tuple[float, float]]:
    """Normalised latency and quality of the rows that were chosen."""
    found = {}
    for row in here.chosen:
        own = figures(here.summary, row, name)
        speedup, quality = own.speedup.value, own.quality[metric].value
        if speedup is not None and quality is not None:
            found[row] = (1 / speedup, quality)
    return found
