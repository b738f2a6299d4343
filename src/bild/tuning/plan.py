"""Which models, in what order, with what windows: hierarchical speculative decoding, planned from two measurements.

Every level's tokens are draws from its own model (greedy: its likeliest tokens), so how often level ``i`` keeps a token
of level ``j`` depends on these two alone: ``α_ij = 1 − E TV(p_i, p_j)``, or how often their likeliest tokens agree.
With the seconds ``c_i(T)`` that a pass over ``T`` drafted tokens takes,

    L_i = (T L_j + c_i(T)) / E(α_ij, T),    E(α, T) = (1 − α^(T+1)) / (1 − α),

is what a token of level ``i`` costs that has level ``j`` below; alone it costs ``c_i(0)``. The best plan takes the
least of these, the smallest model first. Hierarchical speculative decoding (arXiv 2510.19705) reduces the same choice
to a shortest path; its formulas were not to be had, so these are ours. They err: tokens that a level kept are likelier
to be kept by the next than independence says, a level's last round is cut at ``T``, and nothing is said of the time
between passes. :func:`measure` runs a plan, for its prediction to stand beside.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from bild.decoding import ExactMatch, FixedWindow, Greedy, Policy, RejectionSampling, Rules, Sampling
from bild.engine import Job, Middle, Models
from bild.errors import InputError
from bild.generation import running

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder
    from bild.models import Model

WINDOWS = tuple(range(1, 17))
"""Lengths of a draft that are looked at, in tokens."""
TIMED = (1, 2, 4, 8)
"""Tokens of the passes that are timed."""
REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Seconds of a pass of one model.

    Args:
        fixed: of any pass.
        token: more for each token that it reads.
    """

    fixed: float
    token: float

    def reading(self, drafted: int) -> float:
        """Of a pass that reads a draft of so many tokens, and the one before it."""
        return self.fixed + self.token * (drafted + 1)


@dataclass(frozen=True)
class Plan:
    """Models and windows, and what a token is predicted to cost.

    Args:
        levels: names, the largest first.
        windows: tokens that each level but the smallest asks for.
        seconds: a token.
    """

    levels: tuple[str, ...]
    windows: tuple[int, ...]
    seconds: float

    def __str__(self) -> str:
        chain = [self.levels[-1]]
        for level, window in zip(self.levels[-2::-1], self.windows[::-1], strict=True):
            chain.append(f"({window}) → {level}")
        return " ".join(chain)


def expected_tokens(kept: float, window: int) -> float:
    """``E(α, T)``: tokens a round yields where each drafted one is kept with this chance, the judge's own included.

    Args:
        kept: ``α``, 0…1.
        window: ``T``, tokens drafted, 0…
    """
    return sum(kept**at for at in range(window + 1))


def best_plans(
    levels: Sequence[str],
    costs: Mapping[str, Cost],
    kept: Mapping[tuple[str, str], float],
    windows: Sequence[int] = WINDOWS,
) -> dict[int, Plan]:
    """The best plan that ends in the largest model, for each number of models.

    Args:
        levels: names, the smallest first.
        costs: by name.
        kept: ``α`` by ``(judge, drafter)``.
        windows: lengths to choose from, tokens.
    """
    best: dict[str, dict[int, Plan]] = {}
    for at, judge in enumerate(levels):
        best[judge] = {1: Plan((judge,), (), costs[judge].reading(0))}
        for drafter in levels[:at]:
            for count, below in best[drafter].items():
                options = (
                    Plan(
                        (judge, *below.levels),
                        (window, *below.windows),
                        (window * below.seconds + costs[judge].reading(window))
                        / expected_tokens(kept[judge, drafter], window),
                    )
                    for window in windows
                )
                found = min(options, key=lambda plan: plan.seconds)
                known = best[judge].get(count + 1)
                if known is None or found.seconds < known.seconds:
                    best[judge][count + 1] = found
    return best[levels[-1]]


def models_of(decoder: BigLittleDecoder) -> dict[str, Model]:
    """The pair's models by the names of its levels, the smallest first."""
    small = [] if len(decoder.models) < 2 else [("small", decoder.small)]
    middle = decoder.middle
    between = [] if middle is None or middle is dict(small).get("small") else [("middle", middle)]
    return dict([*small, *between, ("large", decoder.large)])


def agreement(decoder: BigLittleDecoder, jobs: Sequence[Job], *, draws: bool = False) -> dict[tuple[str, str], float]:
    """How often each level would keep a token of each smaller one, along the large model's own texts.

    Args:
        decoder: of a small, maybe a middle, and a large model.
        jobs: texts.
        draws: ``1 − E TV`` of the whole distributions, for tokens that are drawn at temperature 1; else how often the
            likeliest tokens agree.

    Raises:
        InputError: no small model.
    """
    models, own = models_of(decoder), decoder.results(jobs, Policy.large(), Greedy())
    names = list(models)
    if len(names) < 2:
        raise InputError("a plan is about two models or three, and this pair has one; name a small one (--small)")
    sums, places = dict.fromkeys(((judge, each) for judge in names for each in names if each != judge), 0.0), 0
    with torch.inference_mode():
        for job, result in zip(jobs, own, strict=True):
            logits = {name: _along(models, name, job, result.token_ids) for name in names}
            places += len(result.token_ids)
            for judge, each in sums:
                p, q = logits[judge], logits[each]
                same = torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1) if draws else p.argmax(-1) == q.argmax(-1)
                sums[judge, each] += float(same.sum())
    return {pair: total / places for pair, total in sums.items()}


def _along(models: Mapping[str, Model], name: str, job: Job, tokens: Sequence[int]) -> torch.Tensor:
    """What a model says at each token of a text ``[T, V]``, over the ids that all models share."""
    prompt = list(job.request.prompt)
    # An early exit reads beside the large model, whose layers it shares.
    scorer = models["large"].start([job.source])
    scorer = scorer if name == "large" else models[name].beside(scorer, [job.source])
    logits = scorer.extend([[*prompt, *tokens[:-1]]], last=len(tokens))[0]
    return logits[:, : min(model.vocab_size for model in models.values())].float()


def pass_costs(decoder: BigLittleDecoder, jobs: Sequence[Job], timed: Sequence[int] = TIMED) -> dict[str, Cost]:
    """What a pass of each model costs on this machine: a line through the medians of passes over some tokens.

    Args:
        decoder: in the runtime it will be used in.
        jobs: texts; passes are timed behind their prompts.
        timed: lengths of the passes, at least two, tokens.
    """
    models, costs = models_of(decoder), {}
    with torch.inference_mode():
        for name in models:
            # Two tokens that any vocabulary has; what they are does not matter to the clock.
            seconds = {count: [_seconds(models, name, job, count) for job in jobs] for count in timed}
            slope, fixed = np.polyfit(list(timed), [median(each) for each in seconds.values()], 1)
            costs[name] = Cost(max(0.0, float(fixed)), max(0.0, float(slope)))
    return costs


def _seconds(models: Mapping[str, Model], name: str, job: Job, count: int) -> float:
    prompt = list(job.request.prompt)
    scorer = models["large"].start([job.source])
    scorer = scorer if name == "large" else models[name].beside(scorer, [job.source])
    scorer.extend([prompt])
    took = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        # To the host, as the loop does: a GPU has not finished before.
        scorer.extend([prompt[-1:] * count], last=count).argmax(-1).tolist()
        took.append(time.perf_counter() - start)
        scorer.truncate([len(prompt)])
    return median(took)


def measure(decoder: BigLittleDecoder, plan: Plan, jobs: Sequence[Job], *, draws: bool = False) -> float | None:
    """Seconds a token that a plan really takes behind the first round of each text, one text at a time.

    The first round is left out because it reads the prompt, which no plan is about; and all texts are decoded once
    before the clock counts.

    Args:
        decoder: whose models the plan is of, in the runtime it is planned for.
        plan: of one, two or three models.
        jobs: texts.
        draws: rejection sampling instead of the exact rule.

    Returns:
        None where every text was done in one round.
    """
    rules = Rules(_policy(plan, draws), Sampling() if draws else Greedy())
    tokens, seconds = 0, 0.0
    for counts in (False, True):
        for result in running.results(jobs, rules, _models(decoder, plan), None, width=1):
            if counts:
                seconds += result.total_s - result.ttft_s
                tokens += sum(len(commit.tokens) for commit in result.rounds[1:])
    return seconds / tokens if tokens else None


def _models(decoder: BigLittleDecoder, plan: Plan) -> Models:
    large, *below = (models_of(decoder)[name] for name in plan.levels)
    middle = Middle(below[0], plan.windows[1]) if len(below) == 2 else None
    return Models(large, below[-1] if below else None, middle=middle)


def _policy(plan: Plan, draws: bool) -> Policy:
    if len(plan.levels) == 1:
        return Policy.large()
    rule = RejectionSampling() if draws else ExactMatch()
    return Policy(hand_over=FixedWindow(), acceptance=rule, max_draft_tokens=plan.windows[0], verify_end=True)
