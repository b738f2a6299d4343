"""Tables 3 and 4: BiLD against speculative decoding with rejection sampling, the unaligned pair on both sides.

Greedy decoding against greedy decoding, where rejection sampling is exact match and writes the large model's own
text, and draws against draws of the large model alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bild.decoding import Policy, Stats
from bild.evaluation.summary import Summary
from bild.reproduction import paper, sampled
from bild.reproduction.choosing import choose_speculative, match, need_dev
from bild.reproduction.grids import WINDOWS
from bild.reproduction.result import Result, table
from bild.reproduction.rows import HEADING, cells, figures, policy_name, stats, values
from bild.reproduction.sampled import Sampled
from bild.reproduction.workspace import Row, Workspace
from bild.tuning.bench import LARGE

EXACT, LATENCY, QUALITY = "speculative decoding", "BiLD, matching latency", "BiLD, matching quality"
TEMPERATURE = {"temperature": 1.0}


@dataclass(frozen=True)
class Comparison:
    """Both sides of one set."""

    greedy: Summary
    rows: dict[str, Row]
    drawn: dict[str, Sampled]
    windows: dict[str, Sampled]
    """Rejection sampling by window."""

    @property
    def best_window(self) -> str:
        """The fastest window of rejection sampling on these very texts, in its favour."""
        return max(self.windows, key=lambda name: self.windows[name].speedup)


def compared(workspace: Workspace, name: str) -> Comparison:
    """Choose on dev, run on test."""
    variant = workspace.inputs.variants[0]
    rival = choose_speculative(workspace, variant, name)
    as_fast, as_good = match(workspace, variant, name, rival)
    policies = {LARGE: Policy.large(), EXACT: rival.policy, LATENCY: as_fast.policy, QUALITY: as_good.policy}
    rows = {label: Row(label, variant, policy) for label, policy in policies.items()}
    greedy = workspace.run(list(rows.values()), name)
    windows = {f"rejection sampling, window {w}": Policy.speculative_sampling(window=w) for w in WINDOWS}
    drawn = sampled.run(workspace, variant, {**windows, QUALITY: as_good.policy}, name, TEMPERATURE)
    return Comparison(greedy, rows, drawn, {label: drawn[label] for label in windows})


def table3(workspace: Workspace) -> Result:
    """BiLD beside rejection sampling: quality and speedup at equal latency and at equal quality."""
    need_dev(workspace, "table3")
    inputs = workspace.inputs
    parts, found = [_about(workspace)], {}
    for name in workspace.names:
        here = compared(workspace, name)
        lines = [cells(here.greedy, row, name, inputs.metric, policy_name(here.rows[row].policy)) for row in here.rows]
        parts += [f"## {name}, {inputs.label}", "Greedy:", table(HEADING, lines), _drawn(workspace, here)]
        found[name] = _values(here, name, inputs.metric)
    parts.append(paper.quality_table(paper.TABLE3, paper.SUMMARISED))
    return Result("Table 3: against speculative decoding", parts, {"sets": found})


def _about(workspace: Workspace) -> str:
    seeds = ", ".join(map(str, workspace.inputs.seeds))
    return (
        "The unaligned pair; every row was run for real. Greedy: the window of speculative decoding is the fastest "
        f"of {WINDOWS[0]} to {WINDOWS[-1]} on dev; BiLD's policies are, on dev, the best that is no slower than it and "
        "the fastest that is no worse. Being lossless, speculative decoding writes the large model's text (up to "
        "rounding), so it cannot score below it as in the paper's table, where it was evidently sampled. Sampled: at "
        f"temperature 1 with seeds {seeds}, against the large model that draws with the same seeds; mean over seeds "
        "and, in brackets, their range."
    )


def _drawn(workspace: Workspace, here: Comparison) -> str:
    rows = [[label, *one.cells()] for label, one in here.drawn.items()]
    best = f"The fastest window on these texts: {here.best_window}."
    return "Sampled:\n\n" + table(["", workspace.inputs.label, "speedup"], rows) + f"\n\n{best}"


def _values(here: Comparison, name: str, metric: str) -> dict[str, Any]:
    greedy = {
        row: {"policy": policy_name(here.rows[row].policy), **values(here.greedy, row, name, metric)}
        for row in here.rows
    }
    return {"greedy": greedy, "sampled": {label: one.to_dict() for label, one in here.drawn.items()},
            "best_window": here.best_window}  # fmt: skip


def table4(workspace: Workspace) -> Result:
    """How often the large model is called, and how often it rolls back."""
    need_dev(workspace, "table4")
    rows, found = [], {}
    for name in workspace.names:
        here = compared(workspace, name)
        counts = {f"{row}, greedy": stats(figures(here.greedy, row, name)) for row in (EXACT, LATENCY, QUALITY)}
        counts |= {f"{row}, sampled": here.drawn[row].counts for row in (here.best_window, QUALITY)}
        rows += [[name, row, *_shares(one)] for row, one in counts.items()]
        found[name] = {row: {**one.to_dict(), **shares(one)} for row, one in counts.items()}
    heading = ["", "", "fallbacks ÷ tokens", "rollbacks ÷ tokens", "rollbacks ÷ fallbacks", "thrown away ÷ drafted"]
    about = (
        "The runs of Table 3. A fallback is a pass of the large model, whatever made the small one hand over; a "
        "rollback is such a pass that throws part of the draft away. Tokens are those of the finished texts. The paper "
        "names no denominator; tokens fit its figures."
    )
    return Result("Table 4: fallbacks and rollbacks", [about, table(heading, rows), paper.share_table()],
                  {"sets": found})  # fmt: skip


def shares(own: Stats) -> dict[str, float]:
    """Fallbacks and rollbacks by what they are divided by; 0 where there is nothing to divide by."""
    thrown = own.num_draft_tokens - own.num_accepted_tokens
    return {
        "fallbacks_per_token": own.num_large_steps / max(1, own.num_tokens),
        "rollbacks_per_token": own.num_rollbacks / max(1, own.num_tokens),
        "rollbacks_per_fallback": own.num_rollbacks / max(1, own.num_large_steps),
        "thrown_away_per_drafted": thrown / max(1, own.num_draft_tokens),
    }


def _shares(own: Stats) -> list[str]:
    return [f"{share:.2%}" for share in shares(own).values()]
