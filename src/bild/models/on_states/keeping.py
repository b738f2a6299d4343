"""The large side, uncompiled: what its head reads of each position is kept as one more layer of its storage, half of
it as keys and half as values, so that whatever moves, copies or forgets rows of that storage does so to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from bild.decoding import Scorer
from bild.models.cache import Shape
from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import inferring
from bild.models.eager.states import HeldStates, TakingScorer, half_of_states
from bild.models.parts import final_norm


def with_states(model: EagerModel) -> list[Shape]:
    """What a model stores of each token where it keeps its states: keys and half a state, values and the other half."""
    middle, half = len(model.shapes) // 2, half_of_states(model)
    return [*model.shapes[:middle], half, *model.shapes[middle:], half]


class Kept(HeldStates):
    """States in the storage of a scorer's rows that others may write, too."""

    def put(self, places: Sequence[tuple[int, int]], states: Tensor) -> None:
        """Write states ``[N, D]`` at rows and positions."""
        if places:
            self._cache.reserve(1 + max(position for _, position in places))
            rows, positions = torch.tensor(places, device=states.device).T
            for half, part in zip(self._halves, states.chunk(2, -1), strict=True):
                half[rows, 0, positions] = part.to(half.dtype)


class KeepingModel(EagerModel):
    """A network whose batches keep what its head reads; see :class:`~bild.models.protocol.Model`."""

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return KeepingScorer(self, sources, encoded)


class KeepingScorer(Kept, TakingScorer):
    """One batch of it; see :class:`bild.decoding.Scorer`."""

    @inferring
    def follow(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read new tokens and score none."""
        self._extend(tokens, 0)

    def _shapes(self, model: EagerModel) -> Sequence[Shape]:
        return with_states(model)

    def _take(self, states: Tensor, past: Cache) -> None:
        layer: Any = past.layers[-1]
        layer.update(*final_norm(self.network)(states)[:, None].chunk(2, dim=-1))
