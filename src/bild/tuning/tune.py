"""From a quality budget to a policy, with the evidence for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.data.examples import Data, Example
from bild.data.json_text import to_json
from bild.data.quality import LABELS
from bild.decoding import Policy
from bild.decoding.presets import DEFAULT_MAX_DRAFT_TOKENS
from bild.errors import InputError
from bild.evaluation.bootstrap import Estimate
from bild.evaluation.figures import ALL, summarise
from bild.evaluation.folder import Folder
from bild.evaluation.summary import Summary
from bild.machine import describe_machine, versions
from bild.tuning.bench import LARGE, Bench
from bild.tuning.costs import CostModel
from bild.tuning.search import Point, default_grid, distinct, pareto

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder

CALIBRATION, FINALS, TRACES, RESULT = "calibration.jsonl", "finals.jsonl", "traces.jsonl", "tune.json"
FINALISTS = 4
FINAL_SECONDS = 240.0
"""Seconds that running the finalists may take; fewer texts where all would take longer."""
DEFAULT_BUDGET = 0.3


@dataclass(frozen=True)
class Tuning:
    """What tuning found; ``summary`` has the finalists beside the large model, run for real."""

    policy: Policy
    """The fastest within the budget; the nearest to it where none is."""
    method: str
    """Its name in the summary."""
    metric: str
    budget: float
    summary: Summary
    front: Sequence[Point]
    """Looked up: no policy is both faster and better than one of these."""
    points: Sequence[Point]
    """All policies that were looked up on every text, fastest first."""
    costs: CostModel
    settings: Mapping[str, Any]

    @property
    def speedup(self) -> Estimate:
        """Seconds of the large model alone / seconds of the policy, over all texts, measured on this machine."""
        return (self.summary.sets.get(ALL) or next(iter(self.summary.sets.values()))).methods[self.method].speedup

    @property
    def loss(self) -> dict[str, float]:
        """Quality of the large model less that of the policy, by set."""
        return losses(self.summary, self.method, self.metric)

    @property
    def within_budget(self) -> bool:
        """Whether the policy loses at most the budget on every set."""
        return max(self.loss.values()) <= self.budget

    @property
    def pays(self) -> bool:
        """Whether the policy is faster than the large model alone, the whole interval of it."""
        return self.speedup.low is not None and self.speedup.low > 1

    def evidence(self) -> dict[str, Any]:
        """What goes with the policy into the pair's file: plain JSON values."""
        sets = {
            name: {
                "texts": of_set.num_examples,
                self.metric: _values(of_set.methods[self.method].quality[self.metric]),
                f"{self.metric}_large": _values(of_set.methods[LARGE].quality[self.metric]),
                "difference": _values(of_set.methods[self.method].difference[self.metric]),
                "speedup": _values(of_set.methods[self.method].speedup),
                "large_share": of_set.methods[self.method].large_share,
                "rollback_rate": of_set.methods[self.method].rollback_rate,
            }
            for name, of_set in self.summary.sets.items()
        }
        tuned = {"tuned_for": f"at most {self.budget:g} {LABELS[self.metric]} less than the large model on each set"}
        return {**tuned, **self.settings, "dev": sets, "cost_ms": self.costs.to_dict(), "machine": describe_machine()}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the texts, as plain JSON values."""
        return {
            "policy": self.policy.to_dict(),
            "within_budget": self.within_budget,
            "pays": self.pays,
            "loss": self.loss,
            "evidence": self.evidence(),
            "front": [point.to_dict() for point in self.front],
            "points": [point.to_dict() for point in self.points],
        }


def tune(
    decoder: BigLittleDecoder,
    sets: Mapping[str, Sequence[Example]],
    *,
    out: str | os.PathLike[str],
    budget: float = DEFAULT_BUDGET,
    metric: str = "bleu",
    grid: Sequence[Policy] | None = None,
    prefix: str = "",
    max_new_tokens: int | None = None,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Tuning:
    """Find the fastest policy that loses at most ``budget`` quality points on every set.

    Each model's word on every prefix is computed once (:mod:`bild.tuning.traces`), so hundreds of policies are
    looked up rather than run; seconds come from a cost model fitted to short runs on this machine; the
    fastest few within the budget are then run for real beside the large model alone.

    Args:
        decoder: the pair, in the runtime it will be used in.
        sets: dev examples by name, every one with references.
        out: folder for what is computed and found; the same call goes on where a killed one stopped.
        budget: points of the metric that may be lost against the large model, 0…, default 0.3.
        metric: ``"bleu"``, ``"chrf"``, ``"rouge1"``, ``"rouge2"``, ``"rougeL"`` or ``"exact_match"``.
        grid: policies to try, all of one measure and metric; None: :func:`bild.tuning.search.default_grid`.
        prefix: text put before every source.
        max_new_tokens: longest text, 1…; None: the checkpoint's.
        settings: what else the texts depend on (names of checkpoints, …), compared when a run goes on.
        fresh: delete what an earlier run left in ``out``.
        say: told what is being done.

    Raises:
        InputError: a value out of range, an example without reference, or a folder of another run.
    """
    _check(sets, budget, metric)
    asked = {"metric": metric, "prefix": prefix, "max_new_tokens": max_new_tokens, **(settings or {})}
    asked["data"] = {name: Data(name, list(members)).digest for name, members in sets.items()}
    files = (CALIBRATION, FINALS, TRACES, RESULT)
    folder = Folder(Path(out), {**asked, "versions": versions()}, fresh=fresh, files=files)
    bench = Bench(decoder, sets, prefix, {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}, say)
    costs = bench.calibrate(folder.path / CALIBRATION)
    search = bench.search(folder.path / TRACES, metric, costs, budget)
    points = search.run(default_grid() if grid is None else grid)
    finalists = distinct(search.within_budget(points) or sorted(points, key=lambda point: point.worst_loss))[:FINALISTS]
    summary = _finals(bench, finalists, folder.path / FINALS)
    method, point = _choose(summary, finalists, metric, budget)
    found = Tuning(point.policy, method, metric, budget, summary, pareto(points), points, costs, asked)
    folder.save(RESULT, to_json(found.to_dict(), indent=1) + "\n")
    return found


def _finals(bench: Bench, points: Sequence[Point], file: Path) -> Summary:
    """These policies and the large model alone, in turn."""
    seconds = sum(point.seconds for point in points) + points[0].seconds * points[0].speedup
    longest = max(len(members) for members in bench.sets.values())
    count = max(1, min(longest, int(longest * FINAL_SECONDS / seconds)))
    bench.say(f"running {len(points)} policies beside the large model alone, about {min(seconds, FINAL_SECONDS):.0f} s")
    named = {LARGE: Policy.large(), **{method_name(point.policy): point.policy for point in points}}
    few = bench.first(count)
    return summarise(few.run([few.method(*each) for each in named.items()], file), few.sets, baseline=LARGE)


def method_name(policy: Policy) -> str:
    """A looked-up policy as ``bild evaluate`` names it."""
    rules = policy.to_dict()
    end = {True: "yes", False: "no"}[policy.verify_end] if isinstance(policy.verify_end, bool) else policy.verify_end
    values = {
        "fallback_threshold": f"{rules['hand_over']['threshold']:g}",
        "rollback_threshold": f"{rules['acceptance']['threshold']:g}",
        "verify_end": end,
        "max_draft_tokens": policy.max_draft_tokens,
        "measure": rules["hand_over"]["measure"],
        "metric": rules["acceptance"]["metric"],
    }
    usual = {"max_draft_tokens": DEFAULT_MAX_DRAFT_TOKENS, "measure": "max_probability", "metric": "nll"}
    return ":".join(["bild", *(f"{key}={value}" for key, value in values.items() if value != usual.get(key))])


def losses(summary: Summary, method: str, metric: str) -> dict[str, float]:
    """Quality of the large model less that of a method, by set."""
    differences = {name: of_set.methods[method].difference[metric].value for name, of_set in summary.sets.items()}
    return {name: -value for name, value in differences.items() if value is not None and name != ALL}


def _choose(summary: Summary, finalists: Sequence[Point], metric: str, budget: float) -> tuple[str, Point]:
    """The fastest of those that kept the budget when they were run, else the nearest to it."""
    whole = summary.sets.get(ALL) or next(iter(summary.sets.values()))
    rows = [(method_name(point.policy), point) for point in finalists]
    worst = {name: max(losses(summary, name, metric).values()) for name, _ in rows}
    kept = [row for row in rows if worst[row[0]] <= budget]
    if kept:
        return min(kept, key=lambda row: whole.methods[row[0]].total_s)
    return min(rows, key=lambda row: worst[row[0]])


def _check(sets: Mapping[str, Sequence[Example]], budget: float, metric: str) -> None:
    if not budget >= 0:
        raise InputError(f"budget is {budget}; allowed is 0 or more")
    if metric not in LABELS:
        raise InputError(f"metric is {metric!r}; allowed are {', '.join(LABELS)}")
    if not sets or not all(sets.values()):
        raise InputError("there are no examples to tune on; give at least one a set")
    for name, members in sets.items():
        for example in members:
            if not example.references:
                raise InputError(f"{name}: example {example.id} has no reference; tuning needs one for each")


def _values(estimate: Estimate) -> list[float | None]:
    """Value, low and high end of the interval."""
    return [None if number is None else round(number, 4) for number in (estimate.value, estimate.low, estimate.high)]
