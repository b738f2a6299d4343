"""A pair and texts: what a pass costs here, what policies would write, and running them for real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.data.examples import Example
from bild.data.quality import QualityMetric
from bild.decoding import Policy, Stats
from bild.errors import InputError
from bild.evaluation.journal import Journal
from bild.evaluation.measure import measure
from bild.evaluation.own import PolicyMethod
from bild.evaluation.surprise import surprise_of
from bild.generation.text import decode
from bild.tuning.agreement import Agreement, metric_named, referring, without_references
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
        return self.only({name: list(members)[:count] for name, members in self.sets.items()})

    def only(self, sets: Mapping[str, Sequence[Example]]) -> Bench:
        """With these examples only."""
        return replace(self, sets=sets)

    def of(self, decoder: BigLittleDecoder) -> Bench:
        """With another pair."""
        return replace(self, decoder=decoder)

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

    def usable(self) -> Bench:
        """Without the texts that the pair cannot decode, of which it says how many and why.

        Raises:
            InputError: none is left.
        """
        sets, why = {}, ""
        for name, members in self.sets.items():
            reasons = [self._reason(example) for example in members]
            sets[name] = [example for example, reason in zip(members, reasons, strict=True) if reason is None]
            why = next((reason for reason in reasons if reason is not None), why)
            if len(sets[name]) < len(members):
                self.say(f"{name}: {len(members) - len(sets[name])} of {len(members)} texts are left out: {why}")
            if not sets[name]:
                raise InputError(f"none of the texts of {name} can be decoded: {why}")
        return self.only(sets)

    def _reason(self, example: Example) -> str | None:
        """Why a text cannot be decoded; None where it can."""
        try:
            self.decoder.jobs([self.prefix + example.source], **self.options)
        except InputError as error:
            return str(error)
        return None

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

    def search(self, file: Path, metric: str | QualityMetric, costs: CostModel, budget: float = 0.0) -> Search:
        """Everything that looking policies up takes; ``file`` keeps what has been read.

        Args:
            file: JSON lines.
            metric: of quality, or its name; of prompts alone it is one of agreement with the large model.
            costs: of a pass.
            budget: points of the metric.
        """
        sources = [self.prefix + example.source for members in self.sets.values() for example in members]
        trees = [Tree(self.decoder.jobs([source], **self.options)[0]) for source in sources]
        simulator = Simulator(trees, Reader(self.decoder, trees, file, progress=self._tell))
        self.say(f"the large model's own words on {len(sources)} texts")
        large, measure = large_alone(simulator), metric_of(metric)
        own, sets = [outcome.tokens for outcome in large], self.sets
        if without_references(sets):
            sets = referring(sets, [decode(self.decoder.tokenizer, tokens) for tokens in own])
        surprise = self._surprise(trees)
        if isinstance(measure, Agreement):
            measure = replace(measure, large=own, surprise=surprise)
        texts = Texts(sets, measure, lambda ids: decode(self.decoder.tokenizer, ids))
        return Search(simulator, texts, large, costs, budget, self.say, surprise)

    def _surprise(self, trees: Sequence[Tree]) -> Callable[[int, tuple[int, ...]], float]:
        """How surprised the large model is by a text: looked up, or read where rounding has led a run elsewhere."""

        def surprise(index: int, tokens: tuple[int, ...]) -> float:
            known, job = trees[index].surprise(tokens), trees[index].job
            return surprise_of(self.decoder.large, job.source, job.request.prompt, tokens) if known is None else known

        return surprise

    def _tell(self, done: int, total: int) -> None:
        if total >= WORTH_A_LINE:
            self.say(f"{done} of {total} texts read")


def metric_of(metric: str | QualityMetric) -> QualityMetric:
    """A measure of quality: as it is, or by its name; see :func:`bild.tuning.agreement.metric_named`.

    Raises:
        InputError: no such name.
    """
    return metric_named(metric) if isinstance(metric, str) else metric


def large_alone(simulator: Simulator) -> list[Outcome]:
    """What the large model writes alone, looked up: a lossless policy then loses nothing, to the last bit."""
    exact, texts = Policy.exact(), range(len(simulator.trees))
    simulator.run([exact], texts)
    return [Outcome.alone(simulator.outcomes[exact][index].tokens) for index in texts]


def _first_error(journal: Journal) -> str:
    errors = (record.error for row in journal.records.values() for record in row.values())
    return next((error for error in errors if error is not None), "no texts")
