"""Several drafters, one of them a round: which one pays is learnt while a text is written.

MetaSD (arXiv 2604.05417), which plays UCB1 over drafters with two rewards. Ours: the reward ``"speed"``, because arms
differ in what they cost; under the others an arm that proposes nothing earns nothing; and successive halving goes by
rounds, because the length of a text is not known before.

Each row learns for itself and from nothing, so that its text does not depend on its neighbours; and only from
positions up to the first rejected one, whose random numbers are spent (lossless rules would no longer be so).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bild.decoding.acceptance import RejectionSampling
from bild.decoding.draft import Draft
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.drafters.several import Several
from bild.decoding.history import History
from bild.decoding.rows import Row
from bild.decoding.verdict import Verdict

Rule = Literal["ucb", "exp3", "halving"]
Reward = Literal["accepted", "overlap", "speed"]
RULES, REWARDS = ("ucb", "exp3", "halving"), ("accepted", "overlap", "speed")
EXPLORATION = 1.0
"""β of UCB; the paper's own value could not be established."""
RATE = 0.2
"""γ of EXP3: share of rounds in which any arm is played."""
STEP_COST, READ_COST = 0.3, 0.2
"""A step of a drafting model, and a draft token that is read, in steps of the large model: 0.26 and 0.17 of 0.86 ms,
the bundled pair compiled on two cores."""
FIRST_PULLS = 2
"""Rounds each arm is played before the first halving; twice as many before each next one."""


@dataclass(slots=True)
class Arms:
    """What a row has learnt of its drafters."""

    counts: list[int]
    """Rounds each was played."""
    sums: list[float]
    """What each earned, 0…1 a round."""
    weights: list[float]
    """Logarithms of EXP3's."""
    random: random.Random
    """Numbers of its own, not those that decide about tokens."""
    chances: list[float]
    """EXP3's, of the last choice."""
    chosen: int = 0
    window: int = 1
    """Tokens that the last draft might have had."""
    alive: list[int] = field(default_factory=list)
    """Arms that no halving has struck out."""

    @classmethod
    def of(cls, row: Row, count: int) -> Arms:
        """Nothing learnt yet."""
        # By the text alone: neither the place in a batch nor the row's own numbers may decide.
        own = random.Random(repr((row.tokens[: row.prompt_length], list(row.request.source))))
        return cls([0] * count, [0.0] * count, [0.0] * count, own, [1 / count] * count, alive=list(range(count)))

    def mean(self, arm: int) -> float:
        """What an arm earned a round."""
        return self.sums[arm] / self.counts[arm] if self.counts[arm] else 0.0


class Bandit(Several):
    """Lets one of its drafters write each draft of a row.

    Args:
        drafters: the arms, at least one.
        rule: ``"ucb"``: each once, then the highest ``mean + √(2 ln t / n)``. ``"exp3"``: drawn by weights that grow
            with what was earned; for arms that change with the text. ``"halving"``: all in turn, then the better half.
        reward: ``"accepted"``: tokens that stay / tokens that would have been allowed. ``"overlap"``: the mean of
            ``1 − TV(p, q)`` over the judged tokens, less noisy; as ``"accepted"`` where the row's acceptance rule is
            not rejection sampling, which alone measures it. ``"speed"``: tokens that the round wrote for its cost,
            ``tokens / (1 + step_cost · steps + read_cost · drafted)``, as a share of what was possible at no cost.
        step_cost: of one step of a drafting model, in steps of the large one, 0…
        read_cost: of reading one drafted token, likewise.

    Raises:
        ValueError: no drafter, an unknown rule or reward, or a cost below 0.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        rule: Rule = "ucb",
        reward: Reward = "accepted",
        *,
        step_cost: float = STEP_COST,
        read_cost: float = READ_COST,
    ) -> None:
        super().__init__(drafters)
        if rule not in RULES:
            raise ValueError(f"rule is {rule!r}; allowed are {', '.join(RULES)}")
        if reward not in REWARDS:
            raise ValueError(f"reward is {reward!r}; allowed are {', '.join(REWARDS)}")
        for name, cost in (("step_cost", step_cost), ("read_cost", read_cost)):
            if not 0 <= cost < math.inf:
                raise ValueError(f"{name} is {cost}; allowed is 0 or more, in steps of the large model")
        self.rule, self.reward, self.step_cost, self.read_cost = rule, reward, step_cost, read_cost

    def draft(self, rows: Sequence[Row], room: Sequence[int]) -> list[Draft]:
        playing = [self._choose(row, free) if free > 0 else None for row, free in zip(rows, room, strict=True)]
        drafts = [Draft() for _ in rows]
        for arm in sorted({arm for arm in playing if arm is not None}):
            own = [free if arm == chosen else 0 for free, chosen in zip(room, playing, strict=True)]
            for b, draft in enumerate(self.drafters[arm].draft(rows, own)):
                if own[b]:
                    drafts[b] = draft
        return drafts

    def learn(self, row: History, draft: Draft, verdict: Verdict) -> None:
        if draft.reason is None:
            return  # Nobody was asked.
        arms: Arms = row.memory[self.key]
        arm, earned = arms.chosen, self._earned(arms, row, draft, verdict)
        arms.counts[arm] += 1
        arms.sums[arm] += earned
        arms.weights[arm] += RATE * earned / (arms.chances[arm] * len(self.drafters))
        self.teach(arm, row, draft, verdict)

    def _choose(self, row: Row, room: int) -> int:
        arms: Arms = row.memory.setdefault(self.key, Arms.of(row, len(self.drafters)))
        choose = {"ucb": _highest_bound, "exp3": _drawn, "halving": _of_the_better_half}[self.rule]
        arms.chosen, arms.window = choose(arms), room
        return arms.chosen

    def _earned(self, arms: Arms, row: History, draft: Draft, verdict: Verdict) -> float:
        if self.reward == "speed":
            steps = sum(work.steps for work in draft.work.values())
            cost = 1 + self.step_cost * steps + self.read_cost * len(draft.tokens)
            return (verdict.accepted + 1) / cost / (arms.window + 1)
        if not draft.tokens:
            return 0.0
        if self.reward == "overlap" and isinstance(row, Row) and isinstance(row.rules.acceptance, RejectionSampling):
            judged = verdict.distances[: verdict.accepted + 1]
            return sum(1 - distance for distance in judged) / len(judged)
        return verdict.accepted / arms.window


def _highest_bound(arms: Arms) -> int:
    if 0 in arms.counts:
        return arms.counts.index(0)
    total = math.log(sum(arms.counts))
    bounds = [arms.mean(arm) + EXPLORATION * math.sqrt(2 * total / count) for arm, count in enumerate(arms.counts)]
    return bounds.index(max(bounds))


def _drawn(arms: Arms) -> int:
    highest = max(arms.weights)
    shares = [math.exp(weight - highest) for weight in arms.weights]
    arms.chances = [(1 - RATE) * share / sum(shares) + RATE / len(shares) for share in shares]
    return arms.random.choices(range(len(shares)), arms.chances)[0]


def _of_the_better_half(arms: Arms) -> int:
    pulls, count = FIRST_PULLS, len(arms.counts)
    while count > len(arms.alive):
        count, pulls = (count + 1) // 2, pulls * 2
    if len(arms.alive) > 1 and min(arms.counts[arm] for arm in arms.alive) >= pulls:
        better = sorted(arms.alive, key=arms.mean, reverse=True)
        arms.alive = sorted(better[: (len(better) + 1) // 2])
    return min(arms.alive, key=lambda arm: arms.counts[arm])
