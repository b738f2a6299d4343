"""What tuning found, and the evidence that goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bild.decoding import Policy
from bild.evaluation.bootstrap import Estimate
from bild.evaluation.figures import ALL
from bild.evaluation.summary import MethodFigures, Summary
from bild.machine import describe_machine
from bild.tuning.agreement import promise
from bild.tuning.bench import LARGE
from bild.tuning.confidence import Bound
from bild.tuning.costs import CostModel
from bild.tuning.judge import Verdict
from bild.tuning.middle import MiddleFound
from bild.tuning.search import Point


@dataclass(frozen=True)
class Finalist:
    """A policy that was run for real."""

    method: str
    """Its name in the summary."""
    point: Point
    bounds: Mapping[str, Bound]
    """By set, of the texts as they were run, and of looked-up ones where there was no time to run them."""
    kept: bool
    """Whether the budget is kept: with the confidence, where one is asked for; else on these texts."""
    differs: float
    """Share of the texts run that came out other than looked up, 0…1: near ties that rounding decides."""

    @property
    def policy(self) -> Policy:
        """The policy that was run."""
        return self.point.policy

    @property
    def loss(self) -> dict[str, float]:
        """Quality of the large model less that of the policy, by set; a lossless policy loses nothing."""
        return {name: bound.loss for name, bound in self.bounds.items()}


@dataclass(frozen=True)
class Tuning:
    """What tuning found; ``summary`` has the finalists beside the large model, run for real."""

    chosen: Finalist
    """The fastest that keeps the budget."""
    finalists: Sequence[Finalist]
    metric: str
    budget: float
    verdict: Verdict | None
    """None: no confidence was asked for."""
    summary: Summary
    front: Sequence[Point]
    """Looked up: no policy is both faster and better than one of these."""
    points: Sequence[Point]
    """All policies that were looked up on every text that proposes, fastest first."""
    costs: CostModel
    settings: Mapping[str, Any] = field(default_factory=dict)
    agreement: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of prompts alone: how far the chosen policy's texts agree with the large model's own, by set."""
    middle: MiddleFound | None = None
    """What the pair's middle model brings; None: it has none."""

    @property
    def policy(self) -> Policy:
        """The policy that was chosen."""
        return self.chosen.policy

    @property
    def method(self) -> str:
        """Its name in the summary."""
        return self.chosen.method

    @property
    def confidence(self) -> float | None:
        """With which the budget is kept; None: on the dev texts only."""
        return None if self.verdict is None else self.verdict.confidence

    @property
    def speedup(self) -> Estimate:
        """Seconds of the large model alone / seconds of the policy, over all texts run, measured on this machine."""
        return (self.summary.sets.get(ALL) or next(iter(self.summary.sets.values()))).methods[self.method].speedup

    @property
    def loss(self) -> dict[str, float]:
        """Quality of the large model less that of the policy, by set."""
        return self.chosen.loss

    @property
    def within_budget(self) -> bool:
        """Whether the policy keeps the budget on every set, with the confidence where one was asked for."""
        return self.chosen.kept

    @property
    def enough_texts(self) -> bool:
        """Whether the dev sets are large enough for the confidence asked; always without one."""
        return self.verdict is None or not self.verdict.too_small

    @property
    def pays(self) -> bool:
        """Whether the policy is faster than the large model alone, the whole interval of it."""
        return self.speedup.low is not None and self.speedup.low > 1

    def evidence(self) -> dict[str, Any]:
        """What goes with the policy into the pair's file: plain JSON values."""
        evidence = {"tuned_for": self._promise(), **self.settings, "pays": self.pays}
        if self.verdict is not None:
            evidence |= self.verdict.to_dict()
        evidence["dev"] = {name: self._of_set(name) for name in self.summary.sets}
        if self.middle is not None:
            evidence["middle"] = self.middle.to_dict()
        return {**evidence, "cost_ms": self.costs.to_dict(), "machine": describe_machine()}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the texts, as plain JSON values."""
        return {
            "policy": self.policy.to_dict(),
            "within_budget": self.within_budget,
            "enough_texts": self.enough_texts,
            "pays": self.pays,
            "loss": self.loss,
            "evidence": self.evidence(),
            "front": [point.to_dict() for point in self.front],
            "points": [point.to_dict() for point in self.points],
        }

    def _promise(self) -> str:
        budget = promise(self.metric, self.budget)
        if self.policy.lossless:
            return f"{budget}: a lossless policy, which loses none on any text but by rounding"
        if self.confidence is None:
            return f"{budget}: on the dev texts themselves, among which the policy was chosen; no confidence"
        return f"{budget}, with confidence {self.confidence:g} on as many other texts"

    def _of_set(self, name: str) -> dict[str, Any]:
        """Figures of a set, of the run; ``all`` has no bound of its own."""
        of_set = self.summary.sets[name]
        own, large = of_set.methods[self.method], of_set.methods[LARGE]
        figures: dict[str, Any] = {"texts": of_set.num_examples, **self._quality(own, large)}
        if name in self.chosen.bounds:
            bound = self.chosen.bounds[name]
            figures["loss"] = bound.to_dict() if self.verdict is not None else {"loss": round(bound.loss, 4)}
        if name in self.agreement:
            figures["agreement"] = dict(self.agreement[name])
        figures |= {"speedup": _values(own.speedup), "large_share": own.large_share}
        return {**figures, "rollback_rate": own.rollback_rate, "differs_from_lookup": round(self.chosen.differs, 4)}

    def _quality(self, own: MethodFigures, large: MethodFigures) -> dict[str, Any]:
        """Of a metric that evaluations know; one of the user's own has its loss only."""
        if self.metric not in own.quality:
            return {}
        return {
            self.metric: _values(own.quality[self.metric]),
            f"{self.metric}_large": _values(large.quality[self.metric]),
            "difference": _values(own.difference[self.metric]),
        }


def _values(estimate: Estimate) -> list[float | None]:
    """Value, low and high end of the interval."""
    return [None if number is None else round(number, 4) for number in (estimate.value, estimate.low, estimate.high)]
