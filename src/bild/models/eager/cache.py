"""A layer of transformers' cache over rows of :class:`~bild.models.cache.RowCache`, of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class EagerLayer(CacheLayerMixin):
    """Keys and values of one layer.

    Args:
        keys: storage ``[B, …, L, D]``, written in place.
        values: likewise.
        begin: tokens that the longest row has read.
        positions: column of each new token ``[B, T]``; None: all rows have read ``begin`` tokens.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, keys: Tensor, values: Tensor, begin: int, positions: Tensor | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.begin, self.positions = begin, positions
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the storage is there."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values ``[B, …, T, D]``; return those of all columns read."""
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def _write(self, storage: Tensor | None, states: Tensor) -> Tensor:
        assert storage is not None
        end = self.begin + states.shape[-2]
        if self.positions is None:
            storage[..., self.begin : end, :] = states
        else:
            positions = self.positions.to(storage.device)
            rows = torch.arange(len(positions), device=storage.device)[:, None]
            storage.movedim(-2, 1).index_put_((rows, positions), states.movedim(-2, 1).to(storage.dtype))
        return storage[..., :end, :]

    def get_seq_length(self) -> int:
        """Tokens that the longest row has read."""
        return self.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns, and the first of them, that a mask is made for."""
        return self.begin + query_length, 0

    def get_max_length(self) -> int:
        """No maximum: the storage has grown before a pass."""
        return -1


def cache_over(tensors: Sequence[Tensor], begin: int, positions: Tensor | None) -> Cache:
    """transformers' cache over keys, then values, of every layer."""
    middle = len(tensors) // 2
    pairs = zip(tensors[:middle], tensors[middle:], strict=True)
    return Cache(layers=[EagerLayer(keys, values, begin, positions) for keys, values in pairs])
