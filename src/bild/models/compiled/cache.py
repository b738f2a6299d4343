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
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.positions = keys, values, positions
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values ``[B, H, T, D]``; return the whole storage."""
        rows = torch.arange(self.positions.shape[0], device=self.positions.device)[:, None]
        assert self.keys is not None and self.values is not None
        for storage, states in ((self.keys, key_states), (self.values, value_states)):
            storage.transpose(1, 2).index_put_((rows, self.positions), states.transpose(1, 2).to(storage.dtype))
        return self.keys, self.values

    def get_seq_length(self) -> Tensor:  # type: ignore[override]
        """Tokens read, of the first row: positions are handed in, so only shapes depend on it."""
        return self.positions[0, 0]


class SourceLayer(StaticLayer):
    """A layer's keys and values of the source, computed once a request."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values = keys, values
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Any number above zero: the layer is filled."""
        return 1
