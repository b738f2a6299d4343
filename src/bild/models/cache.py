"""The keys and values of a batch, row by row: what every runtime stores its text in.

Layout: token ``t`` of row ``b`` stands in column ``t`` of place ``b``, whatever its neighbours have read. A row sees
the columns up to its own token, so whatever padding or a rollback left behind them is masked until it is overwritten.

The contract:

* **write**: a pass writes its new tokens behind what each row has read (:meth:`RowCache.reserve` first, then in place).
* **truncate**: forgetting is lowering a number, which the scorer holds; nothing is moved.
* **keep**: rows go, move up or are copied (:meth:`RowCache.keep`); only rows behind the first change are moved.
* **join**: another cache's rows go on behind these (:meth:`RowCache.join`); only columns that were read are copied.
* Whether a network can be read this way at all is asked and tried when a model is made (see
  :class:`~bild.models.eager.EagerModel`), never in the middle of a text.

A place that is used again is zeroed behind what its new row has read: a masked NaN is still a NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

COLUMNS = 32
"""Columns of the first storage; it doubles whenever a text outgrows it."""
SHRINKING = 4
"""How many times too wide a storage must be when rows go, so that it is made narrower."""


class Shape(NamedTuple):
    """What the keys, or the values, of one layer are like."""

    middle: tuple[int, ...]
    """Dimensions between rows and columns: heads."""
    width: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Shape:
        """Of keys or values ``[B, …, L, D]``."""
        return cls(tuple(tensor.shape[1:-2]), tensor.shape[-1], tensor.dtype, tensor.device)


class RowCache:
    """Tensors ``[capacity, …, columns, D]``: keys of every layer, then values; live rows first.

    Args:
        shapes: of each tensor.
        rows: live rows.
        columns: room of each row.
        capacity: rows there is room for, at least ``rows``; None: no more.
    """

    def __init__(self, shapes: Sequence[Shape], rows: int, columns: int, capacity: int | None = None) -> None:
        self.shapes = list(shapes)
        self.rows, self.columns = rows, columns
        self._used = 0
        self._placed: list[Tensor] | None = None
        self._hold(_zeros(self.shapes, rows if capacity is None else capacity, columns))

    @classmethod
    def holding(cls, tensors: Sequence[Tensor]) -> RowCache:
        """A cache of these tensors, every column of which is written."""
        cache = cls.__new__(cls)
        cache.shapes = [Shape.of(tensor) for tensor in tensors]
        cache.rows, cache.columns = tensors[0].shape[0], tensors[0].shape[-2]
        cache._used = cache.columns
        cache._hold(list(tensors))
        return cache

    @property
    def tensors(self) -> list[Tensor]:
        """Of the live rows ``[B, …, columns, D]``; nobody may change the list."""
        return self._live

    def places(self, rows: int) -> list[Tensor]:
        """Of the live rows and free places behind them, ``rows`` in all and at most the capacity."""
        if rows == self.rows:
            return self._live
        if self._placed is None or self._placed[0].shape[0] != rows:
            self._placed = [tensor[:rows] for tensor in self._held]
        return self._placed

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return self._held[0].shape[0] if self._held else self.rows

    def reserve(self, used: int) -> None:
        """Make sure that the first ``used`` columns can be written, and take them for written."""
        if used > self.columns:
            self._resize(self.capacity, room_for(used))
        self._used = max(self._used, used)

    def widen(self, columns: int) -> None:
        """Make room for at least so many columns; none of them is taken for written."""
        if columns > self.columns:
            self._resize(self.capacity, columns)

    def keep(self, rows: Sequence[int], lengths: Sequence[int], columns: int | None = None) -> None:
        """Go on with these rows, which may be repeated and come in any order.

        Args:
            rows: places of the rows that stay, in their new order.
            lengths: tokens each of them has read.
            columns: room of each row from now on, where it is to change.
        """
        first = next((place for place, row in enumerate(rows) if row != place), len(rows))
        if len(rows) > self.capacity:
            self._resize(next_power(len(rows)), self.columns)
        if first < len(rows):
            self._fill(first, self._held, rows[first:], max(lengths[first:]))
        self._live_rows(len(rows))
        wanted = room_for(max([1, *lengths])) if columns is None else columns
        if wanted * SHRINKING <= self.columns:
            self._used = min(self._used, wanted)
            self._resize(self.capacity, wanted)

    def join(self, other: RowCache, lengths: Sequence[int], columns: int | None = None) -> None:
        """Go on with another cache's rows behind these.

        Args:
            other: of the same shapes; used up.
            lengths: tokens each of its rows has read.
            columns: room of each row, at least this.
        """
        before, rows, needed = self.rows, self.rows + other.rows, max([0, *lengths])
        wide = max(self.columns, room_for(needed) if columns is None else columns)
        if rows > self.capacity or wide > self.columns:
            self._resize(max(self.capacity, next_power(rows)), wide)
        self.rows = rows
        self._fill(before, other.tensors, range(other.rows), needed)
        self._used = max(self._used, needed)
        self._live_rows(rows)

    def write(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Put whole rows ``[N, …, L, D]`` in these places; columns behind theirs become zero."""
        width = tensors[0].shape[-2]
        self.widen(width)
        self._used = max(self._used, width)
        for held, tensor in zip(self._held, tensors, strict=True):
            index = torch.tensor(rows, device=held.device)
            held[index, ..., :width, :] = tensor.to(held.dtype)
            held[index, ..., width:, :] = 0

    def _fill(self, first: int, origin: Sequence[Tensor], rows: Sequence[int], length: int) -> None:
        """Copy rows of ``origin`` into the places from ``first`` on, as far as they are read, and zero behind that."""
        index: dict[torch.device, Tensor] = {}
        for held, tensor in zip(self._held, origin, strict=True):
            chosen = index.setdefault(held.device, torch.tensor(rows, device=held.device))
            places = slice(first, first + len(rows))
            if length:
                # Indexing copies before anything is overwritten.
                held[places, ..., :length, :] = tensor[..., :length, :][chosen]
            held[places, ..., length : self._used, :] = 0

    def _resize(self, capacity: int, columns: int) -> None:
        larger = _zeros(self.shapes, capacity, columns)
        used = min(self._used, columns)
        for old, new in zip(self._held, larger, strict=True):
            new[: self.rows, ..., :used, :] = old[: self.rows, ..., :used, :]
        self.columns = columns
        self._hold(larger)

    def _hold(self, tensors: list[Tensor]) -> None:
        self._held: list[Tensor] = tensors
        self._live_rows(self.rows)

    def _live_rows(self, rows: int) -> None:
        self.rows = rows
        self._placed = None
        # Of the same strides as a tensor of so many rows, which is all that a compiled graph knows.
        self._live: list[Tensor] = self._held if rows == self.capacity else [tensor[:rows] for tensor in self._held]


def room_for(columns: int) -> int:
    """Columns to reserve for so many: the next power of two, so that a long text is moved a few times only."""
    return max(COLUMNS, next_power(columns))


def next_power(number: int) -> int:
    """The lowest power of two that is not below a number."""
    return 1 << (number - 1).bit_length() if number > 1 else 1


def _zeros(shapes: Sequence[Shape], rows: int, columns: int) -> list[Tensor]:
    """Tensors of one shape in one piece: a small model's text costs little more than so many allocations."""
    pieces = {
        shape: iter(
            torch.zeros(
                (shapes.count(shape), rows, *shape.middle, columns, shape.width),
                dtype=shape.dtype,
                device=shape.device,
            ).unbind()
        )
        for shape in set(shapes)
    }
    return [next(pieces[shape]) for shape in shapes]
