"""Whether a model in between pays beside the policy that tuning has found.

A budget says what a policy of two thresholds loses; with a model in between nobody has looked that up. So only lossless
cascades are tried, which keep any budget: the one that :mod:`bild.tuning.plan` finds best, run for real beside the
policy that was chosen, in turn on the same texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.decoding import ExactMatch, FixedWindow, Policy
from bild.errors import InputError
from bild.evaluation.bootstrap import Estimate
from bild.evaluation.figures import ALL, summarise
from bild.tuning.plan import Plan, agreement, best_plans, models_of, pass_costs

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder
    from bild.tuning.bench import Bench

CHOSEN, CASCADE = "chosen", "cascade"
PLAN_TEXTS = 20
"""Texts of each set that a plan is made from."""
RUN_TEXTS = 60
"""Texts of each set that decide."""


@dataclass(frozen=True)
class MiddleFound:
    """The best lossless cascade of a pair, and how it did.

    Args:
        plan: as predicted.
        speedup: seconds of the policy that was chosen without it / its own, measured on this machine.
    """

    plan: Plan
    speedup: Estimate

    @property
    def policy(self) -> Policy:
        """By which the cascade is run."""
        window = self.plan.windows[0]
        return Policy(hand_over=FixedWindow(), acceptance=ExactMatch(), max_draft_tokens=window, verify_end=True)

    @property
    def window(self) -> int:
        """Longest draft that the middle model is given."""
        return self.plan.windows[1]

    @property
    def pays(self) -> bool:
        """Whether it is faster than the policy without it, the whole interval of it."""
        return self.speedup.low is not None and self.speedup.low > 1

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        times = [self.speedup.value, self.speedup.low, self.speedup.high]
        return {"windows": list(self.plan.windows), "speedup_over_chosen": times, "pays": self.pays}


def check_plannable(decoder: BigLittleDecoder) -> None:
    """Whether a pair with a middle model has three models that a plan can be made of.

    Raises:
        InputError: it has not.
    """
    if decoder.middle is not None and len(models_of(decoder)) < 3:
        raise InputError(
            "tuning tries a middle model between a small one that drafts and the large one; "
            "leave middle out, or name another than the small model"
        )


def try_middle(decoder: BigLittleDecoder, bench: Bench, chosen: Policy, file: Path) -> MiddleFound:
    """Plan a cascade and run it beside the policy that was chosen.

    Args:
        decoder: with its middle model.
        bench: of the same pair without it.
        chosen: what tuning has found.
        file: keeps what is done.
    """
    few = bench.first(PLAN_TEXTS)
    sources = [bench.prefix + example.source for members in few.sets.values() for example in members]
    jobs = decoder.jobs(sources, **bench.options)
    bench.say(f"planning windows with the middle model on {len(jobs)} texts")
    plan = best_plans(list(models_of(decoder)), pass_costs(decoder, jobs), agreement(decoder, jobs))[3]
    found = MiddleFound(plan, Estimate(None, None, None))
    bench.say(f"running {plan} beside {CHOSEN}")
    enough = bench.first(RUN_TEXTS)
    three = enough.of(decoder.using(found.window))
    journal = enough.run([enough.method(CHOSEN, chosen), three.method(CASCADE, found.policy)], file)
    summary = summarise(journal, enough.sets, baseline=CHOSEN)
    whole = summary.sets.get(ALL) or next(iter(summary.sets.values()))
    return MiddleFound(plan, whole.methods[CASCADE].speedup)
