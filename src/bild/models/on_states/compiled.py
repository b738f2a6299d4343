"""Both sides of a pair whose small model reads states, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.decoding import Scorer
from bild.errors import InputError
from bild.models.cache import Shape
from bild.models.compiled import compiling
from bild.models.compiled.calling import Graphs
from bild.models.compiled.graphs import Encode, Read
from bild.models.compiled.model import CompiledModel, graph_name
from bild.models.compiled.scorer import CompiledScorer, StatesScorer
from bild.models.eager.scorer import inferring
from bild.models.joined import ALONE
from bild.models.on_states.graphs import KEEPING, READING, ReadKeeping, ReadStates
from bild.models.on_states.keeping import KeepingScorer, Kept, with_states
from bild.models.on_states.reading import Ahead, OnStates, ReadingScorer
from bild.models.probing import difference, nudged, tolerance


class _OnStates(CompiledModel):
    """A side of such a pair."""

    graph: str

    @property
    def storage(self) -> list[Shape]:
        """Keys and half of the states, values and the other half."""
        return with_states(self)

    @property
    def _has_places(self) -> bool:
        # States are read beside keys and values, in the order of the rows.
        return False

    def _compile(self, progress: Callable[[str], None]) -> Graphs:
        encode = self._compile_encode(Encode(self.modules), "", progress)
        return self._compile_read(f"{graph_name(self.network)}-{self.graph}", [], encode, progress)


class CompiledKeepingModel(_OnStates):
    """The large one; see :class:`~bild.models.on_states.keeping.KeepingModel`."""

    graph = KEEPING

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return self.scorer(sources) if self.is_compiled else KeepingScorer(self, sources, encoded)

    def scorer(self, sources: Sequence[Sequence[int]]) -> CompiledKeepingScorer:
        """A scorer that runs compiled."""
        return CompiledKeepingScorer(self, sources)

    def _reader(self) -> Read:
        return ReadKeeping(self.modules, self.farthest)


class CompiledKeepingScorer(Kept, CompiledScorer):
    """One batch of it."""

    @inferring
    def follow(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read new tokens; what may follow is of no interest."""
        self._extend(tokens, 1)


class CompiledReadingModel(_OnStates):
    """The small one; see :class:`~bild.models.on_states.reading.ReadingModel`.

    Args:
        network: it.
        large: whose states it reads.
        progress: as for :class:`CompiledModel`.
    """

    graph = READING
    stands_alone = False

    def __init__(
        self,
        network: PreTrainedModel,
        large: CompiledKeepingModel,
        progress: Callable[[str], None] = compiling.announce,
    ) -> None:
        self.large = large
        super().__init__(network, progress)

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.origin, self.large, self._progress

    @property
    def writes_alone(self) -> bool:
        """Whether one of its graphs tells the next token alone: no, states are written in between."""
        return False

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """There is nothing to begin on.

        Raises:
            InputError: whoever asks.
        """
        raise InputError(ALONE)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """Begin the batch that the large model has begun; see :meth:`~bild.models.protocol.Model.beside`."""
        self.refresh()
        if isinstance(large, KeepingScorer):
            return ReadingScorer(self, large)
        if not isinstance(large, CompiledKeepingScorer):
            raise InputError(ALONE)
        return CompiledReadingScorer(self, large) if self.is_compiled else ReadingScorer(self, large)

    def _reader(self) -> Read:
        return ReadStates(self.modules, self.farthest)

    def _compare(self) -> None:
        _, tokens = self.probe_tokens()

        def uncompiled(*pieces: list[int]) -> Tensor:
            scorer = ReadingScorer(self, KeepingScorer(self.large, [[]]))
            return torch.cat([scorer.extend([piece], len(piece)) for piece in pieces], 1)

        expected = uncompiled(tokens)
        noise = difference(expected, uncompiled(tokens[:2], tokens[2:]))
        with nudged(self.modules), nudged(self.large.modules):
            noise = max(noise, difference(expected, uncompiled(tokens)))
        found = CompiledReadingScorer(self, self.large.scorer([[]])).extend([tokens], len(tokens))
        if not difference(expected, found) <= tolerance(noise):
            raise RuntimeError("its compiled graph scores tokens differently")


class CompiledReadingScorer(OnStates, StatesScorer):
    """One batch of it."""

    large: CompiledKeepingScorer

    def __init__(self, model: CompiledReadingModel, large: CompiledKeepingScorer) -> None:
        self.begin(large, model.network)
        super().__init__(model, [[]] * len(large.lengths))

    def _shapes(self, model: CompiledModel) -> Sequence[Shape]:
        return model.shapes

    @property
    def keeper(self) -> CompiledKeepingScorer:
        """The large model's."""
        return self.large

    def _as_extended(self, scores: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._scores_of(scores)

    def _read(self, rows: list[list[int]], last: int, row: int | None = None) -> Sequence[Tensor]:
        *scores, made = super()._read(rows, last, row)
        more = self._at_once - 1
        for at, (_, count, *_tokens) in enumerate(rows):
            if count:
                ahead = [each[at : at + 1, each.shape[1] - more :] for each in scores] if more else None
                self._ahead[at if row is None else row] = Ahead(made[at, -1 - more :], ahead)
        return [each[:, : each.shape[1] - more] for each in scores]
