"""The small side: reads its tokens beside the states that the large one keeps, or that it has made itself.

What it makes of a token that the large model has not read is written where the large model will write its own state.
Keys and values that were computed of such states are forgotten when the text is rolled back, so that they are
computed anew of the large model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache

from bild.decoding import Scorer
from bild.errors import InputError
from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import inferring
from bild.models.eager.states import TakingScorer
from bild.models.joined import ALONE, join_states
from bild.models.on_states.keeping import KeepingScorer
from bild.models.parts import final_norm
from bild.models.passes import Placed

Tokens = Sequence[Sequence[int]]


class Keeping(Scorer, Protocol):
    """A scorer that keeps its states, see :class:`~bild.models.on_states.keeping.Kept`."""

    def states(self, positions: Tensor, row: int | None = None) -> Tensor: ...

    def put(self, places: Sequence[tuple[int, int]], states: Tensor) -> None: ...

    def follow(self, tokens: Tokens) -> None: ...


class OnStates:
    """What both runtimes do alike: a mixin before their scorers.

    Args:
        large: the scorer whose states are read. Rows are kept and joined on both sides.
    """

    large: Any
    _lengths: list[int]

    def begin(self, large: Keeping) -> None:
        """Read on top of this scorer."""
        self.large = large
        self._sure = [0] * len(large.lengths)
        """Tokens whose keys and values were computed of the large model's states."""
        self._moved = False
        """Whether rows have moved since: of what the large model stores, only what it has read moves along."""
        self._made: dict[int, Tensor] = {}
        """States of the last tokens of the rows of this pass ``[D]``."""

    @property
    def lengths(self) -> list[int]:
        """Tokens read so far, as far as their states are known."""
        if self._moved:
            self._moved = False
            self.truncate(self.large.lengths)
        return list(self._lengths)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget what follows, and what was computed of states that the large model did not make."""
        self._lengths = [min(each) for each in zip(self._lengths, lengths, self._sure, strict=True)]
        self._sure = list(self._lengths)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)  # type: ignore[misc]
        self._sure, self._moved = [self._sure[b] for b in rows], True

    def join(self, other: Any) -> None:
        super().join(other)  # type: ignore[misc]
        self._sure, self._moved = self._sure + other._sure, True

    def copy(self, rows: Sequence[int]) -> None:
        """There is none: it would read the states of this batch. One beside the large model's copy reads anew."""

    @inferring
    def _extend(self, tokens: Tokens, last: int) -> Any:
        if self._moved:
            raise ValueError("rows have moved; ask for the lengths before they are read on")
        self._lead(tokens)
        found, rest = None, [list(row) for row in tokens]
        while any(rest):
            # A state is known of what the large model has read, and of the last token that this one has.
            known = [max(1, 1 + read - own) for read, own in zip(self.large.lengths, self._lengths, strict=True)]
            piece = [row[:count] for row, count in zip(rest, known, strict=True)]
            rest = [row[count:] for row, count in zip(rest, known, strict=True)]
            scored = self._read_piece(piece, min(last, max(map(len, piece))))
            found = scored if found is None else _behind(found, scored, [len(row) for row in piece], last)
        return found

    def _lead(self, tokens: Tokens) -> None:
        """Let the large model read all but the last token, where it has not."""
        unread = [
            row[read - own : -1] if own <= read < own + len(row) - 1 else []
            for row, own, read in zip(tokens, self._lengths, self.large.lengths, strict=True)
        ]
        if any(unread):
            self.large.follow(unread)

    def _read_piece(self, tokens: Tokens, last: int) -> Any:
        read, before = self.large.lengths, list(self._lengths)
        self._made = {}
        scored = super()._extend(tokens, last)  # type: ignore[misc]
        for b, (begin, end) in enumerate(zip(before, self._lengths, strict=True)):
            if self._sure[b] >= begin < end:
                self._sure[b] = min(end, read[b] + 1)
        places = [(b, self._lengths[b] - 1) for b in self._made if self._lengths[b] > read[b]]
        if places:
            self.large.put(places, torch.stack([self._made[b] for b, _ in places]))
        return scored


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


class ReadingScorer(OnStates, TakingScorer):
    """One batch of it; see :class:`bild.decoding.Scorer`. It may know less of a text than it was told to keep."""

    def __init__(self, model: EagerModel, large: Keeping) -> None:
        self.begin(large)
        super().__init__(model, [[]] * len(large.lengths))

    def _pass(self, tokens: Tokens, last: int, row: int | None) -> Tensor:
        logits = super()._pass(tokens, last, row)
        for at, new in enumerate(tokens):
            if new:
                self._made[at if row is None else row] = self._states[at, len(new) - 1]
        return logits

    def _take(self, states: Tensor, past: Cache) -> None:
        self._states: Tensor = final_norm(self.network)(states)

    def _together(self, tokens: Tokens, row: int | None) -> Tensor:
        begin = self._lengths[0 if row is None else row]
        positions = torch.arange(begin, begin + len(tokens[0]), device=self.model.device).expand(len(tokens), -1)
        return self._joined(super()._together(tokens, row), positions, row)

    def _apart(self, new: Placed, row: int | None) -> Tensor:
        return self._joined(new.tokens, new.positions, row)

    def _joined(self, ids: Tensor, positions: Tensor, row: int | None) -> Tensor:
        states = self.large.states((positions - 1).clamp(min=0), row)
        return join_states(self.network, ids, states * (positions > 0)[..., None])
