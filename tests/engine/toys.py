"""An engine over toy models, a clock that is set by hand, and scorers that break on demand."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bild.decoding import (
    Batch,
    BeamBatch,
    Beams,
    Commit,
    Greedy,
    LocalVerifier,
    Loop,
    ModelDrafter,
    Policy,
    Request,
    Row,
    Rules,
    Sampling,
    decode,
    searches,
)
from bild.engine import Engine, Event, Failed, Finished, Job, Limits, Written
from tests.toy import ToyModel, ToyScorer

EOS = 6
SMALL, LARGE = ToyModel(1, blend=0.75), ToyModel(2, blend=0.75)
POLICIES = [
    Policy.bild(fallback_threshold=0.4, rollback_threshold=1.0),
    Policy.exact(fallback_threshold=0.3, max_draft_tokens=4),
    Policy.speculative_sampling(window=3),
    Policy.large(),
    Policy.small(),
]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


Trouble = Callable[[list[list[int]]], None]
"""Looks at all that a scorer will have read, and raises."""


class Breaking(ToyScorer):
    """A toy that asks before every pass whether it may."""

    def __init__(self, model: ToyModel, batch_size: int, trouble: Trouble) -> None:
        super().__init__(model, batch_size)
        self.trouble = trouble

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> torch.Tensor:
        self.trouble([[*old, *new] for old, new in zip(self.read, tokens, strict=True)])
        return super().extend(tokens, last)


@dataclass
class Toys:
    """Opens batches of toys, and counts them."""

    large: Trouble = lambda read: None
    small: Trouble = lambda read: None
    opened: int = 0
    widest: int = 0

    def __call__(self, jobs: Sequence[Job], rows: Sequence[Row], alone: bool) -> Loop:
        self.opened += 1
        count = len(rows)
        if rows[0].rules.beams is not None:
            scorers = [Breaking(SMALL, count, self.small), Breaking(LARGE, count, self._large)]
            return BeamBatch(rows, scorers[0], None, "small") if alone else BeamBatch(rows, scorers[1], scorers[0])
        if alone:
            return Batch(list(rows), LocalVerifier(Breaking(SMALL, count, self.small), "small"), None, 7)
        large = LocalVerifier(Breaking(LARGE, count, self._large))
        return Batch(list(rows), large, ModelDrafter(Breaking(SMALL, count, self.small)), 7)

    def _large(self, read: list[list[int]]) -> None:
        self.widest = max(self.widest, len(read))
        self.large(read)


@dataclass
class Caller:
    """Hands texts in and keeps what it is told."""

    engine: Engine
    events: dict[int, list[Event]] = field(default_factory=dict)

    def ask(self, *jobs: Job, rules: Rules | None = None, live: bool = True) -> list[int]:
        place = self.engine.reserve()
        try:
            rules = Rules(POLICIES[0]) if rules is None else rules
            ids = self.engine.submit(jobs, rules, self.hear, place, live=live)
        finally:
            self.engine.release(place)
        self.events |= {id: self.events.get(id, []) for id in ids}
        return ids

    def hear(self, events: list[Event]) -> None:
        for event in events:
            self.events.setdefault(event.ticket, []).append(event)

    def tokens(self, id: int) -> list[int]:
        return [t for event in self.events[id] if isinstance(event, Written) for t in event.commit.tokens]

    def last(self, id: int) -> Finished | Failed | None:
        ends = [event for event in self.events[id] if not isinstance(event, Written)]
        assert len(ends) <= 1 and (not ends or self.events[id][-1] is ends[0])
        return ends[0] if ends else None


def engine(toys: Toys | None = None, **limits: int) -> Caller:
    return Caller(Engine(Toys() if toys is None else toys, Limits(**limits), clock=Clock()))


def job(seed: int, *, longest: int | None = None, prompt: Sequence[int] | None = None) -> Job:
    rng = random.Random(seed)
    start = [rng.randrange(6) for _ in range(rng.randint(1, 5))] if prompt is None else list(prompt)
    return Job(
        [],
        Request(
            prompt=start,
            max_new_tokens=rng.randint(1, 14) if longest is None else longest,
            eos_token_ids=[EOS] if rng.random() < 0.7 and longest is None else [],
            generator=torch.Generator().manual_seed(seed),
        ),
    )


def rules(seed: int) -> Rules:
    rng = random.Random(seed + 1)
    if rng.random() < 0.3:
        return Rules(rng.choice([each for each in POLICIES if searches(each)]), beams=Beams(width=rng.randint(2, 3)))
    return Rules(rng.choice(POLICIES), rng.choice([Greedy(), Sampling()]))


def alone(job: Job, rules: Rules) -> list[Commit]:
    """The same text by :func:`decode`."""
    request = Request(
        prompt=job.request.prompt,
        max_new_tokens=job.request.max_new_tokens,
        eos_token_ids=job.request.eos_token_ids,
        generator=torch.Generator().manual_seed(job.request.generator.initial_seed()),
    )
    if rules.beams is not None:
        batch, commits = Toys()([job], [Row(0, request, rules)], rules.policy.alone == "small"), list[Commit]()
        while batch.rows:
            commits += batch.round()
        return commits
    if rules.policy.alone == "small":
        return list(decode([request], rules.policy, large=ToyScorer(SMALL), choice=rules.choice))
    drafter = ModelDrafter(ToyScorer(SMALL))
    return list(decode([request], rules.policy, large=ToyScorer(LARGE), drafter=drafter, choice=rules.choice))


def text(job: Job, rules: Rules) -> list[int]:
    return [token for commit in alone(job, rules) for token in commit.tokens]
