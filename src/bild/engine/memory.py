"""What the models of a pair have read of one text, for a next one that begins with the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bild.decoding import Batch, Row, Rules, Scorer
from bild.engine.opening import Job, Models, Starts, begin
from bild.models import Model


class Memory(Starts):
    """Goes on from the last text: a turn of a conversation begins with all turns before it, and with the answers.

    For decoder-only models, a text at a time. What is read in other pieces is rounded otherwise, so in number formats
    of few bits a text may differ from the one that is written without a memory where two tokens are nearly as likely.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin the next text anew, as after an error in the middle of a pass."""
        self._scorers: list[Scorer] = []
        self._row: Row | None = None
        self._kind: Any = None
        self._known = self._taken = 0

    def begin(self, jobs: Sequence[Job], first: int, rules: Rules, models: Models) -> Batch:
        """As :func:`~bild.engine.begin`, of one job; its prompt is read from where it parts from the last text.

        Raises:
            InputError: as there.
        """
        (job,) = jobs
        # Another drafter or another model alone is read with in another order, or not at all.
        kind = models, rules.policy.alone
        self._known = self._common(job.request.prompt) if kind == self._kind and _are_current(models) else 0
        if not self._known:
            self.forget()
        self._kind, self._taken = kind, 0
        batch = begin(jobs, first, rules, models, self)
        (self._row,) = batch.rows
        return batch

    def start(self, model: Model, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        return self._next(lambda: model.start(sources, encoded))

    def beside(self, model: Model, large: Scorer | None, sources: Sequence[Sequence[int]]) -> Scorer:
        return self._next(lambda: super(Memory, self).beside(model, large, sources))

    def _next(self, make: Callable[[], Scorer]) -> Scorer:
        """The models of a batch begin in the same order each time."""
        if self._taken == len(self._scorers):
            self._scorers.append(make())
        scorer = self._scorers[self._taken]
        scorer.truncate([self._known])
        self._taken += 1
        return scorer

    def _common(self, prompt: Sequence[int]) -> int:
        """How many tokens of a prompt the last text began with; its last one is always read, for what follows."""
        if self._row is None:
            return 0
        # Behind what is final there may be a draft that was rolled back when the text ended.
        last = self._row.tokens[: self._row.committed - 1]
        pairs = zip(prompt[:-1], last, strict=False)
        return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(prompt) - 1, len(last)))


def _are_current(models: Models) -> bool:
    """Whether the networks are those that have read the last text."""
    middle = None if models.middle is None else models.middle.model
    return all(model is None or model.is_current() for model in (models.large, models.small, middle))
