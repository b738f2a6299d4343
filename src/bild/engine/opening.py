"""Batches of a pair: rows that have read nothing, and what reads, judges and drafts for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from bild.decoding import (
    Batch,
    BeamBatch,
    Cascade,
    Drafter,
    Kit,
    LocalVerifier,
    Loop,
    Maker,
    ModelDrafter,
    Recipe,
    Request,
    Row,
    Rules,
    Scorer,
    Verifier,
    Writer,
)
from bild.decoding.scorer import prepare
from bild.errors import InputError
from bild.models import Model


@dataclass(frozen=True)
class Job:
    """A row of a batch."""

    source: list[int]
    """Encoder input; empty for a decoder-only model."""
    request: Request
    encoded: Tensor | None = None
    """What the large model's encoder makes of it ``[S, H]``, where that is known before."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the request's processor and the choice of tokens were made of, as JSON values: a verifier elsewhere makes
    them anew."""
    is_one_of_several: bool = False
    """Whether others of the same prompt follow, whose reading is then worth keeping."""


class Middle(NamedTuple):
    """A model in between, and how it is used.

    Args:
        model: it judges what is drafted, before the large one does.
        window: longest draft that it is given, in tokens, 1…
        name: what its own tokens are signed with.
        part: ``"small"`` or ``"exit:N"``, if it is no network of its own.
    """

    model: Model
    window: int
    name: str = "middle"
    part: str | None = None


class Models(NamedTuple):
    """The two sides of a pair, what drafts for the large one, and the model in between if there is one."""

    large: Model
    small: Model | None
    drafter: Maker = Recipe()
    middle: Middle | None = None
    verifier: Callable[[Sequence[Job]], Verifier] | None = None
    """Makes what judges in the large model's place, where that is elsewhere."""


Starts = Callable[[Callable[[], Scorer]], Scorer]
"""Gives the scorer of a model of a new batch; told how it is made. They are asked for in the same order each time."""


def anew(make: Callable[[], Scorer]) -> Scorer:
    """One that has read nothing."""
    return make()


class Open(Protocol):
    """Makes batches."""

    def __call__(self, jobs: Sequence[Job], rows: Sequence[Row], alone: bool, starts: Starts = anew) -> Loop:
        """A batch.

        Args:
            jobs: one a row.
            rows: they may have written something before.
            alone: whether the small model decodes them alone.
            starts: gives the models' scorers.
        """


def begin(jobs: Sequence[Job], first: int, rules: Rules, models: Models, starts: Starts = anew) -> Loop:
    """A batch of rows that have written nothing.

    Args:
        jobs: one a row.
        first: index of the first row; the others follow.
        rules: of all rows.
        models: of the pair.
        starts: gives the models' scorers.

    Raises:
        InputError: a small model is needed, and there is none.
    """
    rows = [Row(first + at, job.request, within(rules)) for at, job in enumerate(jobs)]
    return open_batch(jobs, rows, models, rules.policy.alone, starts)


def within(rules: Rules) -> Rules:
    """Rules of a row in its batch: the one model there is takes the large model's place."""
    return replace(rules, policy=replace(rules.policy, alone="large")) if rules.policy.alone == "small" else rules


def opener(models: Models) -> Open:
    """Makes the batches of an engine: rows of which both models or the large one decode may share one."""
    drafts = models.small is not None or not (isinstance(models.drafter, Recipe) and models.drafter.needs_small)

    def opened(jobs: Sequence[Job], rows: Sequence[Row], alone: bool, starts: Starts = anew) -> Loop:
        return open_batch(jobs, rows, models, "small" if alone else None if drafts else "large", starts)

    return opened


def open_batch(
    jobs: Sequence[Job], rows: Sequence[Row], models: Models, alone: Writer | None, starts: Starts = anew
) -> Loop:
    """A batch of rows.

    Args:
        jobs: one a row.
        rows: they may have written something before.
        models: of the pair.
        alone: which of them decodes; None: both.
        starts: gives their scorers.

    Raises:
        InputError: a small model is needed, and there is none.
    """
    sources = [job.source for job in jobs]
    if rows[0].rules.beams is not None:
        # Texts that are searched have batches of their own.
        return _searched(sources, rows, models, alone, starts)
    if models.verifier is not None and alone != "small":
        elsewhere = _drafter(models, None, sources, starts) if alone is None else None
        return Batch(list(rows), models.verifier(jobs), elsewhere, models.large.vocab_size)
    encoded = [job.encoded for job in jobs if job.encoded is not None]
    scorers: list[Scorer] = []

    def started(make: Callable[[], Scorer]) -> Scorer:
        scorers.append(starts(make))
        return scorers[-1]

    def first() -> Scorer:
        return small_of(models).start(sources) if alone == "small" else models.large.start(sources, encoded or None)

    scorer = started(first)
    drafter = None
    if alone is None:
        # Somebody else drafts first.
        prepare(scorer)
        drafter = _drafter(models, scorer, sources, started)
    verifier = LocalVerifier(scorer, "small" if alone == "small" else "large")
    return Batch(list(rows), verifier, drafter, models.large.vocab_size, scorers)


def _searched(
    sources: Sequence[Sequence[int]], rows: Sequence[Row], models: Models, alone: Writer | None, starts: Starts
) -> BeamBatch:
    scorer = starts(lambda: (small_of(models) if alone == "small" else models.large).start(sources))
    small = models.small if alone is None and drafts_beams(models) else None
    if small is None:
        return BeamBatch(rows, scorer, None, "small" if alone == "small" else "large")
    # Not beside the large model: what an early exit, or a model without an encoder, shares with it is in one place for
    # both, and their hypotheses are not the same.
    return BeamBatch(rows, scorer, starts(lambda: small.start(sources)))


def drafts_beams(models: Models) -> bool:
    """Whether the small model alone is what drafts, as layers of a beam search can only be by a model."""
    if models.small is None or not models.small.stands_alone:
        return False
    return models.drafter == Recipe() and models.middle is None


def are_current(models: Models) -> bool:
    """Whether the networks are still those that have read what was read."""
    middle = None if models.middle is None else models.middle.model
    return all(model is None or model.is_current() for model in (models.large, models.small, middle))


def small_of(models: Models) -> Model:
    """The small model.

    Raises:
        InputError: there is none.
    """
    if models.small is None:
        raise InputError("there is no small model; name one with small=…, or a drafter that needs none: 'ngram'")
    return models.small


def _drafter(models: Models, large: Scorer | None, sources: Sequence[Sequence[int]], starts: Starts) -> Drafter:
    def beside(model: Model) -> Scorer:
        # The large model may be elsewhere.
        return starts(lambda: model.start(sources) if large is None else model.beside(large, sources))

    def small() -> Drafter:
        return ModelDrafter(beside(small_of(models)))

    drafter, middle = models.drafter(Kit(small, models.large.vocab_size, len(sources))), models.middle
    if middle is None:
        return drafter
    return Cascade(beside(middle.model), drafter, middle.window, middle.name)
