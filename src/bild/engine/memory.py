"""What the models of a pair have read of one text, for a next one that begins with the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bild.decoding import Loop, Row, Rules, Scorer
from bild.decoding.common import common
from bild.engine.opening import Job, Models, are_current, begin
from bild.errors import InputError


class Memory:
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

    def begin(self, jobs: Sequence[Job], first: int, rules: Rules, models: Models) -> Loop:
        """As :func:`~bild.engine.begin`, of one job; its prompt is read from where it parts from the last text.

        Raises:
            InputError: as there; or a beam search, whose models read many texts.
        """
        (job,) = jobs
        if rules.beams is not None:
            raise InputError("a beam search has no memory of the last text; leave num_beams or the memory out")
        # Another drafter or another model alone is read with in another order, or not at all.
        kind = models, rules.policy.alone
        self._known = self._common(job.request.prompt) if kind == self._kind and are_current(models) else 0
        if not self._known:
            self.forget()
        self._kind, self._taken = kind, 0
        batch = begin(jobs, first, rules, models, self._next)
        (self._row,) = batch.rows
        return batch

    def _next(self, make: Callable[[], Scorer]) -> Scorer:
        """The scorer that has read the last text in this place, or a new one."""
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
        return min(common(prompt, last), len(prompt) - 1)
