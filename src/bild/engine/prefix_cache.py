"""What the models have read of many texts, for others that begin with the same tokens: a turn of a conversation begins
with all turns before it, and every request with what the service tells the model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bild.decoding import Batch, Loop, Request, Row, Rules, Scorer
from bild.decoding.common import common
from bild.decoding.scorer import copied
from bild.engine.opening import Job, Models, Open, Starts, anew, are_current, open_batch, within

WORTH = 32
"""Tokens that a text must have in common with another one, so that copying what was read of them pays."""
SEEN = 1024
"""Beginnings of prompts that are known again."""
Key = tuple[bool, str, bytes]
"""What texts have in common of which one may go on from another: whether the small model decodes them alone, their
salt, and how they begin."""


@dataclass(frozen=True, eq=False)
class _Known:
    """A text, and what the models have read of it."""

    key: Key
    tokens: NDArray[np.int64]
    scorers: Sequence[Scorer | None]

    def common(self, tokens: NDArray[np.int64]) -> int:
        """How many tokens another text begins with alike."""
        length = min(len(self.tokens), len(tokens))
        differ = self.tokens[:length] != tokens[:length]
        return int(differ.argmax()) if differ.any() else length


class PrefixCache:
    """Keeps what was read of texts that ended and of prompts, those used last; of decoder-only models.

    May be used by several threads. What is kept of a text is copied, so a text is not changed by what comes of the
    others. What is read in other pieces is rounded otherwise: in number formats of few bits a text may differ from the
    one that is read whole, where two tokens are nearly as likely.

    Args:
        models: of the pair.
        tokens: most tokens of all texts together, 1…; each takes as much memory as it does in a batch.
    """

    def __init__(self, models: Models, tokens: int) -> None:
        self._models, self._most = models, tokens
        self._lock = threading.Lock()
        # Texts by what they begin with, and all in the order of their last use.
        self._beginnings: dict[Key, list[_Known]] = {}
        self._used: dict[_Known, None] = {}
        # Beginnings of prompts, the newest last.
        self._seen: dict[Key, None] = {}

    @property
    def tokens(self) -> int:
        """Of all texts that are kept."""
        with self._lock:
            return self._size()

    def forget(self) -> None:
        """Keep nothing of what was read so far."""
        with self._lock:
            self._beginnings, self._used = {}, {}

    def open(self, open: Open, job: Job, row: Row, alone: bool) -> tuple[Loop, int] | None:
        """A batch of one row that goes on from a text that was read before, and how much of it; None: there is none.

        Args:
            open: makes batches.
            job: of the row.
            row: it.
            alone: whether the small model decodes it alone.
        """
        found = self._find(row, alone)
        if found is None:
            return None
        if not are_current(self._models):
            self.forget()
            return None
        known, count = found
        scorers = iter(known.scorers)

        def start(make: Callable[[], Scorer]) -> Scorer:
            held = next(scorers, None)
            copy = None if held is None else copied(held, [0])
            if copy is None:
                return make()
            copy.truncate([count])
            return copy

        return open([job], [row], alone, start), count

    def begin(self, jobs: Sequence[Job], first: int, rules: Rules, models: Models) -> Loop:
        """As :func:`~bild.engine.begin`; what a prompt begins with is kept if another of these begins alike, or one did
        before.

        Args:
            jobs: one a row.
            first: index of the first row; the others follow.
            rules: of all rows.
            models: those of this cache.
        """
        decodes = rules.policy.alone
        alone = decodes == "small"

        def open(jobs: Sequence[Job], rows: Sequence[Row], alone: bool, starts: Starts = anew) -> Loop:
            return open_batch(jobs, rows, models, decodes, starts)

        batches: list[Loop] = []
        fresh: list[tuple[Job, Row]] = []
        for at, job in enumerate(jobs):
            row = Row(first + at, job.request, within(rules))
            known = self.open(open, job, row, alone)
            if known is not None:
                batches.append(known[0])
            elif self._comes_again(job, jobs[at + 1 :], alone):
                batch = open([job], [row], alone)
                batch.read(row.prompt_length)
                if isinstance(batch, Batch):
                    self.remember(batch, [0], alone)
                batches.append(batch)
            else:
                fresh.append((job, row))
        if fresh:
            batches.append(open([job for job, _ in fresh], [row for _, row in fresh], alone))
        whole, *others = batches
        for batch in others:
            whole.join(batch)
        return whole

    def _comes_again(self, job: Job, others: Sequence[Job], alone: bool) -> bool:
        """Whether a prompt begins as one before, or as one of those that begin with it or follow it."""
        if len(job.request.prompt) <= WORTH:
            return False
        is_seen = self._is_seen(job.request, alone)
        return is_seen or job.is_one_of_several or any(begin_alike(job.request, other.request) for other in others)

    def _is_seen(self, request: Request, alone: bool) -> bool:
        """Whether a prompt begins as one before; if not, it is the first one from now on."""
        key = _key(np.array(request.prompt[:WORTH], dtype=np.int64), request.salt, alone)
        with self._lock:
            seen = key in self._seen
            self._seen[key] = None
            if len(self._seen) > SEEN:
                del self._seen[next(iter(self._seen))]
            return seen

    def remember(self, batch: Batch, places: Iterable[int], alone: bool) -> None:
        """Keep what was read of these rows, as far as it is final.

        Args:
            batch: of the rows.
            places: theirs.
            alone: whether the small model decodes them alone.
        """
        for place in places:
            row = batch.rows[place]
            tokens = np.array(row.tokens[: max(0, row.committed - 1)], dtype=np.int64)
            key = _key(tokens, row.request.salt, alone)
            if not WORTH <= len(tokens) <= self._most or self._covers(key, tokens):
                continue
            scorers = batch.copies(place)
            if scorers and scorers[0] is not None:
                self._add(_Known(key, tokens, scorers))

    def _find(self, row: Row, alone: bool) -> tuple[_Known, int] | None:
        """The text that has most in common with a row's, whose last token is always read, for what follows."""
        tokens = np.array(row.tokens, dtype=np.int64)
        with self._lock:
            alike = self._beginnings.get(_key(tokens, row.request.salt, alone), ()) if len(tokens) > WORTH else ()
            if not alike:
                return None
            known = max(alike, key=lambda each: each.common(tokens))
            self._touch(known)
            return known, min(known.common(tokens), len(tokens) - 1)

    def _covers(self, key: Key, tokens: NDArray[np.int64]) -> bool:
        """Whether a text begins so that is kept."""
        with self._lock:
            for known in self._beginnings.get(key, ()):
                if known.common(tokens) == len(tokens):
                    self._touch(known)
                    return True
            return False

    def _add(self, new: _Known) -> None:
        with self._lock:
            alike = self._beginnings.setdefault(new.key, [])
            for old in [each for each in alike if each.common(new.tokens) == len(each.tokens)]:
                alike.remove(old)
                del self._used[old]
            alike.append(new)
            self._used[new] = None
            while self._size() > self._most:
                oldest = next(iter(self._used))
                del self._used[oldest]
                self._beginnings[oldest.key].remove(oldest)
            self._beginnings = {key: texts for key, texts in self._beginnings.items() if texts}

    def _touch(self, known: _Known) -> None:
        del self._used[known]
        self._used[known] = None

    def _size(self) -> int:
        return sum(len(known.tokens) for known in self._used)


def _key(tokens: NDArray[np.int64], salt: str, alone: bool) -> Key:
    return alone, salt, tokens[:WORTH].tobytes()


def can_keep(models: Models) -> bool:
    """Whether what these models have read can be kept: there are no sources beside it, and it is here."""
    return models.verifier is None and not models.large.is_encoder_decoder


def begin_alike(one: Request, other: Request) -> bool:
    """Whether enough of two prompts is the same that only one of them should be read."""
    return one.salt == other.salt and common(one.prompt[:WORTH], other.prompt[:WORTH]) == WORTH
