"""States that are taken from a pass, and kept as one more layer of a scorer's storage: half of each as keys, half as
values, so that whatever moves, copies or forgets rows of that storage does so to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from bild.models.cache import RowCache, Shape
from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import EagerScorer
from bild.models.passes import Source
from bild.models.seams import Pass


def half_of_states(model: EagerModel) -> Shape:
    """Of half of a model's hidden states."""
    width = model.config.get_text_config(decoder=True).hidden_size // 2
    return Shape((1,), width, model.dtype, model.shapes[-1].device)


class HeldStates:
    """States ``[B, T, D]`` in the storage of a scorer's rows; a mixin before the scorers of both runtimes."""

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

    @property
    def _halves(self) -> list[Tensor]:
        tensors = self._cache.tensors
        return [tensors[len(tensors) // 2 - 1], tensors[-1]]


class TakingScorer(EagerScorer):
    """A scorer that is handed what the last decoder layer makes in each pass."""

    def _take(self, states: Tensor, past: Cache) -> None:
        """Do with it what is to be done.

        Args:
            states: before the last norm ``[B, T, D]``.
            past: the storage of the pass.
        """
        raise NotImplementedError

    def _run(
        self, now: Pass, rows: Tensor, past: Cache, mask: Any, positions: Tensor | None, source: Source | None
    ) -> Tensor:
        now.takes_states = True
        logits = super()._run(now, rows, past, mask, positions, source)
        assert now.states is not None
        self._take(now.states, past)
        return logits
