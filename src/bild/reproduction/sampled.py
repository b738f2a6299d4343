"""Methods that draw their tokens, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bild.decoding import Policy, Stats
from bild.evaluation.summary import MethodFigures
from bild.reproduction.inputs import Variant
from bild.reproduction.rows import stats
from bild.reproduction.workspace import Row, Workspace
from bild.tuning.bench import LARGE


@dataclass(frozen=True)
class Sampled:
    """One method, the figures of each seed against the large model that draws with the same seed."""

    figures: Sequence[MethodFigures]
    large: Sequence[MethodFigures]
    metric: str

    @property
    def quality(self) -> list[float]:
        """The score of each seed."""
        return [value for one in self.figures if (value := one.quality[self.metric].value) is not None]

    @property
    def mean(self) -> float:
        """Mean score of the seeds."""
        return sum(self.quality) / len(self.quality)

    @property
    def speedup(self) -> float:
        """Seconds of the large model / seconds of this, each over all seeds."""
        return sum(one.total_s for one in self.large) / sum(one.total_s for one in self.figures)

    @property
    def counts(self) -> Stats:
        """Counts of the policy added up over the seeds."""
        return Stats.total(map(stats, self.figures))

    def cells(self) -> list[str]:
        """Mean quality with the range over seeds, and the speedup."""
        low, high = min(self.quality), max(self.quality)
        return [f"{self.mean:.2f} ({low:.2f}…{high:.2f})", f"{self.speedup:.2f}"]

    def to_dict(self) -> dict[str, Any]:
        return {"quality": self.quality, "mean": self.mean, "speedup": self.speedup, "counts": self.counts.to_dict()}


def run(
    workspace: Workspace, variant: Variant, policies: Mapping[str, Policy], name: str, draw: Mapping[str, Any]
) -> dict[str, Sampled]:
    """Run these policies and the large model with every seed on one test set.

    Args:
        workspace: of the run.
        variant: which pair.
        policies: by label.
        name: of the set.
        draw: how tokens are drawn, as ``generate`` takes it, without the seed.
    """
    every = {LARGE: Policy.large(), **policies}
    by_seed = []
    for seed in workspace.inputs.seeds:
        rows = [Row(label, variant, policy, {**draw, "seed": seed}) for label, policy in every.items()]
        by_seed.append(workspace.run(rows, name).sets[name].methods)
    metric, large = workspace.inputs.metric, [methods[LARGE] for methods in by_seed]
    return {label: Sampled([methods[label] for methods in by_seed], large, metric) for label in every}
