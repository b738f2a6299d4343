"""The large side, uncompiled: what its head reads of each position is kept as one more layer of its storage, half of
it as keys and half as values, so that whatever moves, copies or forgets rows of that storage does so to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from bild.decoding import Scorer
from bild.models.cache import RowCache, Shape
from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import EagerScorer, inferring
from bild.models.parts import final_norm
from bild.models.passes import Source
from bild.models.seams import Pass


def with_states(model: EagerModel) -> list[Shape]:
    """What a model stores of each token where it keeps its states: keys and half a state, values and the other half."""
    middle, width = len(model.shapes) // 2, model.config.get_text_config(decoder=True).hidden_size
    half = Shape((1,), width // 2, model.dtype, model.shapes[-1].device)
    return [*model.shapes[:middle], half, *model.shapes[middle:], half]


class Kept:
    """States ``[B, T, D]`` in the storage of a scorer's rows."""

    _cache: RowCache

    def states(self, positions: Tensor, row: int | None = None) -> Tensor:
        """At these positions ``[B, T]``; any behind the last one known.

        Args:
            positions: of rows.
            row: the only one of them; None: all.
        """
        halves = self._halves if row is None else [half[row : row + 1] for half in self._halves]
        index = positions.clamp(max=self._cache.columns - 1)[..., None].to(halves[0].device)
        return torch.cat([half[:, 0].take_along_dim(index, dim=1) for half in halves], -1)

    def put(self, places: Sequence[tuple[int, int]], states: Tensor) -> None:
        """Write states ``[N, D]`` at rows and positions."""
        if places:
            self._cache.reserve(1 + max(position for _, position in places))
            rows, positions = torch.tensor(places, device=states.device).T
            for half, part in zip(self._halves, states.chunk(2, -1), strict=True):
                half[rows, 0, positions] = part.to(half.dtype)

    @property
    def _halves(self) -> list[Tensor]:
        tensors = self._cache.tensors
        return [tensors[len(tensors) // 2 - 1], tensors[-1]]


class KeepingModel(EagerModel):
    """A network whose batches keep what its head reads; see :class:`~bild.models.protocol.Model`."""

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return KeepingScorer(self, sources, encoded)


class KeepingScorer(Kept, EagerScorer):
    """One batch of it; see :class:`bild.decoding.Scorer`."""

    @inferring
    def follow(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read new tokens and score none."""
        self._extend(tokens, 0)

    def _shapes(self, model: EagerModel) -> Sequence[Shape]:
        return with_states(model)

    def _run(
        self, now: Pass, rows: Tensor, past: Cache, mask: Any, positions: Tensor | None, source: Source | None
    ) -> Tensor:
        now.takes_states = True
        logits = super()._run(now, rows, past, mask, positions, source)
        assert now.states is not None
        states: Tensor = final_norm(self.network)(now.states)
        layer: Any = past.layers[-1]
        layer.update(*states[:, None].chunk(2, dim=-1))
        return logits
