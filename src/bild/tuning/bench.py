"""A pair and texts: what a pass costs here, what policies would write, and running them for real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.data.examples import Example
from bild.decoding import Policy, Stats
from bild.errors import InputError
from bild.evaluation.journal import Journal
from bild.evaluation.measure import measure
from bild.evaluation.own import PolicyMethod
from bild.generation.text import decode
from bild.tuning.costs import CostModel
from bild.tuning.search import Search, Texts
from bild.tuning.simulation import Outcome, Simulator
from bild.tuning.traces import Reader, Tree

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder

LARGE = "large"
CALIBRATION_TEXTS = 40
"""Texts of each set from which the cost of a pass is learnt."""
WORTH_A_LINE = 32
"""Texts; fewer are read in no time."""
CALIBRATION_METHODS = (
    LARGE,
    "small",
    "exact",
    "bild:fallback_threshold=0.3:rollback_threshold=3:verify_end=no",
    "bild:fallback_threshold=0.6:rollback_threshold=2:verify_end=yes",
)


@dataclass(frozen=True)
class Bench:
    """What all stages of a search share.

    Args:
        decoder: the pair, in the runtime it will be used in.
        sets: examples by name.
        prefix: text put before every source.
        options: of the decoder's ``generate``.
        say: told what is being done.
    """

    decoder: BigLittleDecoder
    sets: Mapping[str, Sequence[Example]]
    prefix: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda line: None

    def first(self, count: int) -> Bench:
        """With the first examples of each set only."""
        return replace(self, sets={name: list(members)[:count] for name, members in self.sets.items()})

    def method(self, name: str, policy: Policy) -> PolicyMethod:
        """A policy of this pair as a method of an evaluation."""
        return PolicyMethod(name, self.decoder, policy, self.options)

    def run(self, methods: Sequence[PolicyMethod], file: Path) -> Journal:
        """Decode every example by every method, in turn; ``file`` keeps what is done."""
        journal = Journal([method.name for method in methods], file)
        try:
            measure(methods, self.sets, journal, prefix=self.prefix)
        finally:
            journal.close()
        return journal

    def calibrate(self, file: Path) -> CostModel:
        """What a pass costs, from a few policies on a few texts."""
        self.say("measuring what a pass of each model costs")
        methods = [self.method(name, self.decoder.resolve_policy(name)) for name in CALIBRATION_METHODS]
        journal = self.first(CALIBRATION_TEXTS).run(methods, file)
        records = [record for row in journal.records.values() for record in row.values() if record.error is None]
        if not records:
            raise InputError(f"none of the texts can be decoded: {_first_error(journal)}")
        counts = [Stats(**record.stats) for record in records if record.stats is not None]
        return CostModel.fit(counts, [record.total_s or 0.0 for record in records])

    def search(self, file: Path, metric: str, costs: CostModel, budget: float = 0.0) -> Search:
        """Everything that looking policies up takes; ``file`` keeps what has been read."""
        sources = [self.prefix + example.source for members in self.sets.values() for example in members]
        self.say(f"the large model alone on {len(sources)} texts")
        results = self.decoder.generate(sources, LARGE, batch_size=64, **self.options)
        large = [Outcome.alone(tuple(result.token_ids)) for result in results]
        trees = [Tree(job) for job in self.decoder.jobs(sources, **self.options)]
        simulator = Simulator(trees, Reader(self.decoder, trees, file, progress=self._tell))
        texts = Texts(self.sets, metric, lambda ids: decode(self.decoder.tokenizer, ids))
        return Search(simulator, texts, large, costs, budget, self.say)

    def _tell(self, done: int, total: int) -> None:
        if total >= WORTH_A_LINE:
            self.say(f"{done} of {total} texts read")


def _first_error(journal: Journal) -> str:
    errors = (record.error for row in journal.records.values() for record in row.values())
    return next((error for error in errors if error is not None), "no texts")
