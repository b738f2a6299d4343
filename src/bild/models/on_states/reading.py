"""The small side: reads its tokens beside the states that the large one keeps, or that it has made itself.

What it makes of a token that the large model has not read is written where the large model will write its own state.
Keys and values that were computed of such states are forgotten when the text is rolled back, so that they are
computed anew of the large model's.

One that drafts m tokens at once (:mod:`bild.models.parallel`) makes m states and m scores in a pass. Tokens that are
drafted by them are not read one by one: they wait until none of the scores is left, and are then read together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache

from bild.decoding import Scorer
from bild.errors import InputError
from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import EagerScorer, inferring
from bild.models.joined import ALONE, join_states
from bild.models.on_states.keeping import KeepingScorer
from bild.models.parallel import ahead_of, parallel_head
from bild.models.passes import Placed, Source
from bild.models.seams import Pass

Tokens = Sequence[Sequence[int]]


class Keeping(Scorer, Protocol):
    """A scorer that keeps its states, see :class:`~bild.models.on_states.keeping.Kept`."""

    def states(self, positions: Tensor, row: int | None = None) -> Tensor: ...

    def put(self, places: Sequence[tuple[int, int]], states: Tensor) -> None: ...

    def follow(self, tokens: Tokens) -> None: ...


@dataclass
class Ahead:
    """What one pass has made behind the last token of a row."""

    states: Tensor
    """Of that token and the m − 1 after it ``[m, D]``."""
    scores: Any
    """Of what follows each of those after it ``[1, m − 1, …]``, as a pass gives them; None where it makes one state."""
    waiting: list[int] = field(default_factory=list)
    """Tokens that were drafted by these scores and not read yet."""

    @property
    def has_scores(self) -> bool:
        """Whether some are left."""
        return len(self.waiting) < len(self.states) - 1


class OnStates:
    """What both runtimes do alike: a mixin before their scorers.

    Args:
        large: the scorer whose states are read. Rows are kept and joined on both sides.
    """

    large: Any
    _lengths: list[int]

    def begin(self, large: Keeping, network: Any) -> None:
        """Read on top of this scorer, with a network that reads states."""
        self.large = large
        head = parallel_head(network)
        self._at_once = 1 if head is None else head.at_once
        self._sure = [0] * len(large.lengths)
        """Tokens whose keys and values were computed of the large model's states."""
        self._moved = False
        """Whether rows have moved since: of what the large model stores, only what it has read moves along."""
        self._ahead: dict[int, Ahead] = {}
        """Of rows, behind the last token that they have read."""

    @property
    def lengths(self) -> list[int]:
        """Tokens read so far, as far as their states are known, and those that wait to be read."""
        if self._moved:
            self._moved = False
            self.truncate(self.large.lengths)
        return [length + len(self._waiting(b)) for b, length in enumerate(self._lengths)]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what follows, and what was computed of states that the large model did not make."""
        self._lengths = [min(each) for each in zip(self._lengths, lengths, self._sure, strict=True)]
        self._sure, self._ahead = list(self._lengths), {}

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)  # type: ignore[misc]
        self._sure, self._moved, self._ahead = [self._sure[b] for b in rows], True, {}

    def join(self, other: Any) -> None:
        super().join(other)  # type: ignore[misc]
        self._sure, self._moved, self._ahead = self._sure + other._sure, True, {}

    def copy(self, rows: Sequence[int]) -> None:
        """There is none: it would read the states of this batch. One beside the large model's copy reads anew."""

    def is_told(self, row: int) -> bool:
        """Whether what follows the next token of a row is scored already, so that it takes no pass."""
        return row in self._ahead and self._ahead[row].has_scores

    def _waiting(self, row: int) -> list[int]:
        return self._ahead[row].waiting if row in self._ahead else []

    def _as_extended(self, scores: Any) -> Any:
        """Scores that were kept as a pass gave them, as ``_extend`` returns them."""
        return scores

    @inferring
    def _extend(self, tokens: Tokens, last: int) -> Any:
        if self._moved:
            raise ValueError("rows have moved; ask for the lengths before they are read on")
        self._lead(tokens)
        found, rest = None, [list(row) for row in tokens]
        while any(rest):
            # Whose scores are there does not read with those that have none left: no row depends on another.
            told = {b for b, row in enumerate(rest) if row and self.is_told(b)}
            scored, counts = self._told(rest, told) if told else self._read_piece(rest, last)
            rest = [row[count:] for row, count in zip(rest, counts, strict=True)]
            found = scored if found is None else _behind(found, scored, counts, last)
        return found

    def _lead(self, tokens: Tokens) -> None:
        """Let the large model read all but the last token, where it has not."""
        unread = [
            row[read - own : -1] if own <= read < own + len(row) - 1 else []
            for row, own, read in zip(tokens, self.lengths, self.large.lengths, strict=True)
        ]
        if any(unread):
            self.large.follow(unread)

    def _told(self, tokens: Tokens, rows: Collection[int]) -> tuple[Any, list[int]]:
        """The scores behind the next token of these rows, and how many tokens those are of each row."""
        scores = []
        for b, row in enumerate(tokens):
            if b in rows:
                ahead = self._ahead[b]
                scores.append(_at(ahead.scores, len(ahead.waiting)))
                ahead.waiting.append(row[0])
            else:
                scores.append(None)
        return self._as_extended(_beside(scores)), [int(b in rows) for b in range(len(tokens))]

    def _read_piece(self, tokens: Tokens, last: int) -> tuple[Any, list[int]]:
        """Read on as far as states are known, with what waits; the scores, and how many tokens of each row that was."""
        read, before = self.large.lengths, list(self._lengths)
        waiting = [self._waiting(b) if row else [] for b, row in enumerate(tokens)]
        counts = []
        for b, row in enumerate(tokens):
            # Of what the large model has read, and of what this one has made behind its last token.
            known = max(len(self._ahead[b].states) if b in self._ahead else 1, 1 + read[b] - before[b])
            counts.append(min(len(row), known - len(waiting[b])))
        piece = [[*more, *row[:count]] for more, row, count in zip(waiting, tokens, counts, strict=True)]
        made = self._ahead = {b: ahead for b, ahead in self._ahead.items() if not tokens[b]}
        scored = super()._extend(piece, min(last, max(counts)))  # type: ignore[misc]
        places: list[tuple[int, int]] = []
        states: list[Tensor] = []
        for b, (begin, end) in enumerate(zip(before, self._lengths, strict=True)):
            if self._sure[b] >= begin < end:
                self._sure[b] = min(end, read[b] + 1)
            if begin < end <= read[b]:
                # The large model knows what follows.
                del made[b]
            elif begin < end:
                places += [(b, end - 1 + at) for at in range(self._at_once)]
                states.append(made[b].states)
        if places:
            self.large.put(places, torch.cat(states))
        return scored, counts


def _at(scores: Any, at: int) -> Any:
    """One place ``[1, 1, …]`` of the scores ``[1, m − 1, …]`` of a row."""
    if not isinstance(scores, Tensor):
        return [_at(each, at) for each in scores]
    return scores[:, at : at + 1]


def _beside(rows: Sequence[Any]) -> Any:
    """Scores ``[1, 1, …]`` of rows as those of a batch; of a row that has none there is no meaning."""
    some = next(row for row in rows if row is not None)
    if not isinstance(some, Tensor):
        return [_beside([None if row is None else row[i] for row in rows]) for i in range(len(some))]
    return torch.cat([some if row is None else row for row in rows])


def _behind(before: Any, now: Any, counts: Sequence[int], last: int) -> Any:
    """Scores of two pieces that were read one after the other, right-aligned ``[B, last, …]``."""
    if not isinstance(now, Tensor):
        return [_behind(one, other, counts, last) for one, other in zip(before, now, strict=True)]
    rows = [
        torch.cat([one, other[len(other) - count :]])[-last:]
        for one, other, count in zip(before, now, counts, strict=True)
    ]
    width = max(map(len, rows))
    return torch.stack([torch.cat([row.new_zeros(width - len(row), *row.shape[1:]), row]) for row in rows])


class ReadingModel(EagerModel):
    """A network that reads states; see :class:`~bild.models.protocol.Model`."""

    stands_alone = False

    def start(self, sources: Tokens, encoded: Sequence[Tensor] | None = None) -> Scorer:
        """There is nothing to begin on.

        Raises:
            InputError: whoever asks.
        """
        raise InputError(ALONE)

    def beside(self, large: Scorer, sources: Tokens) -> Scorer:
        """Begin the batch that the large model has begun; see :meth:`~bild.models.protocol.Model.beside`."""
        self.refresh()
        if not isinstance(large, KeepingScorer):
            raise InputError(ALONE)
        return ReadingScorer(self, large)


class ReadingScorer(OnStates, EagerScorer):
    """One batch of it; see :class:`bild.decoding.Scorer`. It may know less of a text than it was told to keep."""

    def __init__(self, model: EagerModel, large: Keeping) -> None:
        self.begin(large, model.network)
        super().__init__(model, [[]] * len(large.lengths))

    def _pass(self, tokens: Tokens, last: int, row: int | None) -> Tensor:
        logits, more = super()._pass(tokens, last, row), self._at_once - 1
        for at, new in enumerate(tokens):
            if new:
                scores = logits[at : at + 1, logits.shape[1] - more :] if more else None
                self._ahead[at if row is None else row] = Ahead(self._shown[at, -1 - more :], scores)
        return logits[:, : logits.shape[1] - more]

    def _run(
        self, now: Pass, rows: Tensor, past: Cache, mask: Any, positions: Tensor | None, source: Source | None
    ) -> Tensor:
        now.ahead = ahead_of(self.network)
        logits = super()._run(now, rows, past, mask, positions, source)
        assert now.shown is not None
        self._shown = now.shown
        return logits

    def _together(self, tokens: Tokens, row: int | None) -> Tensor:
        begin = self._lengths[0 if row is None else row]
        positions = torch.arange(begin, begin + len(tokens[0]), device=self.model.device).expand(len(tokens), -1)
        return self._joined(super()._together(tokens, row), positions, row)

    def _apart(self, new: Placed, row: int | None) -> Tensor:
        return self._joined(new.tokens, new.positions, row)

    def _joined(self, ids: Tensor, positions: Tensor, row: int | None) -> Tensor:
        states = self.large.states((positions - 1).clamp(min=0), row)
        return join_states(self.network, ids, states * (positions > 0)[..., None])
