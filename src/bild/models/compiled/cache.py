"""Layers of transformers' cache over storage of fixed place, as a graph can be traced through them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer


class RowLayer(StaticLayer):
    """A layer's keys and values ``[B, H, L, D]``; each row writes behind its own tokens.

    Args:
        keys: storage, written in place.
        values: likewise.
        positions: column of each new token ``[B, T]``.
        places: of the rows in the storage ``[B]``; None: they are in its order.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor, places: Tensor | None = None) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.positions, self.places = keys, values, positions, places
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values ``[B, H, T, D]``; return the whole storage of the rows."""
        count, device = self.positions.shape[0], self.positions.device
        rows = torch.arange(count, device=device) if self.places is None else self.places
        assert self.keys is not None and self.values is not None
        heads = torch.arange(self.keys.shape[1], device=device)
        # Of the storage itself: written through a view, Inductor would copy all of it out and back in each layer.
        places = rows[:, None, None], heads[:, None], self.positions[:, None]
        for storage, states in ((self.keys, key_states), (self.values, value_states)):
            storage.index_put_(places, states.to(storage.dtype))
        return of_places(self.keys, self.places), of_places(self.values, self.places)

    def get_seq_length(self) -> Tensor:  # type: ignore[override]
        """Tokens read, of the first row: positions are handed in, so only shapes depend on it."""
        return self.positions[0, 0]


def of_places(storage: Tensor, places: Tensor | None) -> Tensor:
    """The rows at these places; in a graph our attention reads them where they are."""
    return storage if places is None else storage.index_select(0, places)


class SourceLayer(StaticLayer):
    """A layer's keys and values of the source, computed once a request."""

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor | None = None) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values = of_places(keys, places), of_places(values, places)
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Any number above zero: the layer is filled."""
        return 1
