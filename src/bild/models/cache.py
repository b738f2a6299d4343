"""The keys and values of a batch, row by row: what every runtime stores its text in.

Layout: token ``t`` of a row stands in column ``t`` of the row's place, whatever its neighbours have read. A row sees
the columns up to its own token, so whatever padding or a rollback left behind them is masked until it is overwritten.

The contract:

* **write**: a pass writes its new tokens behind what each row has read (:meth:`RowCache.reserve` first, then in place).
* **truncate**: forgetting is lowering a number, which the scorer holds; nothing is moved.
* **keep**: rows go, change their order or are copied (:meth:`RowCache.keep`). Rows stay in their places: whoever reads
  them by name (:meth:`RowCache.in_places`) moves nothing, whoever reads them side by side (:attr:`RowCache.tensors`)
  moves those behind the first that changed, when he next does.
* **join**: another cache's rows go on behind these (:meth:`RowCache.join`), in places that are free; only columns that
  were read are copied.
* **copy**: some rows become a cache of their own as well (:meth:`RowCache.copy`).
* Whether a network can be read this way at all is asked and tried when a model is made (see
  :class:`~bild.models.eager.EagerModel`), never in the middle of a text.

A place that is used again is zeroed behind what its new row has read, for a masked NaN is still a NaN, unless whoever
reads it reads nothing under a mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

COLUMNS = 32
"""Columns of the first storage; it doubles whenever a text outgrows it."""
SHRINKING = 4
"""How many times too wide a storage must be when rows go, so that it is made narrower."""
LARGEST = 16 << 20
"""Bytes of a piece that holds more than one tensor: malloc gives what has 32 MiB or more back to the system when it is
freed, which maps and zeroes it anew, page by page."""


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


class Copy(NamedTuple):
    """A row that is to be copied."""

    origin: int
    """The place it is copied from."""
    place: int
    """Its own."""
    stood: bool
    """Whether a copy of the same row stood there before."""


class Places:
    """Where the rows of a batch stand. That depends on which rows stayed and came, and on nothing else: two caches that
    were told the same have their rows in the same places.

    A copy of a row goes where another copy of it stood, if there is such a place: what all of them have in common, as
    their source, need not be copied again.

    Args:
        rows: of the batch, each in the place of its number.
    """

    def __init__(self, rows: int) -> None:
        self.of_rows = list(range(rows))
        self._originals = list(range(rows))
        """Names what each row is, or was copied from."""
        self._names = itertools.count(rows)
        self._left: dict[int, int] = {}
        """Free places, and of what the row was a copy that stood there."""

    @property
    def end(self) -> int:
        """Behind the last one in use."""
        return max(self.of_rows, default=-1) + 1

    @property
    def are_in_order(self) -> bool:
        """Whether each row stands in the place of its number."""
        return self.of_rows == list(range(len(self.of_rows)))

    def keep(self, rows: Sequence[int]) -> list[Copy]:
        """Go on with these rows, which may be repeated and come in any order.

        Returns:
            For rows that are asked for again: where they are to be copied from and to, and whether a copy of the same
            row stood there before.
        """
        before, taken, again = self.of_rows, set[int](), list[int]()
        for at, row in enumerate(rows):
            if before[row] in taken:
                again.append(at)
            taken.add(before[row])
        self._left |= {
            place: original for place, original in zip(before, self._originals, strict=True) if place not in taken
        }
        self.of_rows, self._originals = [before[row] for row in rows], [self._originals[row] for row in rows]
        copies = list[Copy]()
        for at in again:
            place, stood = self._place_of_a_copy(self._originals[at], taken)
            copies.append(Copy(self.of_rows[at], place, stood))
            taken.add(place)
            self.of_rows[at] = place
        return copies

    def join(self, count: int) -> list[int]:
        """So many rows go on behind these; their places."""
        taken = set(self.of_rows)
        new = list(itertools.islice((place for place in itertools.count() if place not in taken), count))
        for place in new:
            self._left.pop(place, None)
        self.of_rows = [*self.of_rows, *new]
        self._originals += itertools.islice(self._names, count)
        return new

    def _place_of_a_copy(self, original: int, taken: set[int]) -> tuple[int, bool]:
        for place, stood in self._left.items():
            if stood == original:
                del self._left[place]
                return place, True
        place = next(place for place in itertools.count() if place not in taken)
        self._left.pop(place, None)
        return place, False


class RowCache:
    """Tensors ``[capacity, …, columns, D]``: keys of every layer, then values; made when somebody reads or writes them.

    Args:
        shapes: of each tensor.
        rows: live rows, each in the place of its number; or the places of some.
        columns: room of each row.
        capacity: rows there is room for, at least ``rows``; None: no more.
        zeroed: whether columns that nobody has written are zero, as whoever reads them under a mask needs it; if not,
            they may be anything, NaN among it, and no time is spent on them.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        rows: int | Places,
        columns: int,
        capacity: int | None = None,
        zeroed: bool = True,
    ) -> None:
        self.shapes, self.columns, self.zeroed = list(shapes), columns, zeroed
        self.places = Places(rows) if isinstance(rows, int) else rows
        self._written = set[int]()
        """Places that hold whole rows, of those that stand there or stood there last."""
        self._used = 0
        self.capacity = max(self.places.end, capacity or 0)
        """Rows there is room for."""
        self._pieces, self._groups = list[Tensor](), list[list[int]]()
        self._held, self._seen = list[Tensor](), list[Tensor]()

    @classmethod
    def holding(cls, tensors: Sequence[Tensor], places: Places | None = None) -> RowCache:
        """A cache of these tensors, every column of which is written, whose rows are in the places of their numbers."""
        cache = cls.__new__(cls)
        cache.shapes = [Shape.of(tensor) for tensor in tensors]
        cache.places = Places(tensors[0].shape[0]) if places is None else places
        cache.columns, cache._written, cache.zeroed = tensors[0].shape[-2], set(cache.places.of_rows), True
        cache._used, cache.capacity = cache.columns, tensors[0].shape[0]
        cache._hold([tensor[None] for tensor in tensors], [[number] for number in range(len(tensors))], tensors)
        return cache

    @property
    def rows(self) -> int:
        """Live rows."""
        return len(self.places.of_rows)

    @property
    def tensors(self) -> list[Tensor]:
        """Of the live rows, side by side ``[B, …, columns, D]``; nobody may change the list."""
        return self.side_by_side(self.rows)

    def side_by_side(self, rows: int) -> list[Tensor]:
        """Of the live rows and free places behind them, ``rows`` in all and at most the capacity."""
        if not self.places.are_in_order:
            self._line_up()
        return self._first(rows)

    def in_places(self) -> list[Tensor]:
        """Of the places up to the last one in use."""
        return self._first(self.places.end)

    def reserve(self, used: int) -> None:
        """Make sure that the first ``used`` columns can be written, and take them for written."""
        if used > self.columns:
            self._resize(self.capacity, room_for(used))
        self._used = max(self._used, used)

    def widen(self, columns: int) -> None:
        """Make room for at least so many columns; none of them is taken for written."""
        if columns > self.columns:
            self._resize(self.capacity, columns)

    def keep(self, rows: Sequence[int], lengths: Sequence[int], columns: int | None = None, grows: bool = True) -> None:
        """Go on with these rows, which may be repeated and come in any order.

        Args:
            rows: numbers of the rows that stay, in their new order.
            lengths: tokens each of them has read.
            columns: room of each row from now on, where it is to change.
            grows: whether rows are written further than :meth:`write` has; if not, copies of one are the same for ever.
        """
        copies = self.places.keep(rows)
        if self.places.end > self.capacity:
            self._resize(next_power(self.places.end), self.columns)
        copies = [each for each in copies if grows or not each.stood or each.place not in self._written]
        for each in copies:
            (self._written.add if each.origin in self._written else self._written.discard)(each.place)
        if copies and self._is_made:
            self._fill([each.place for each in copies], self._pieces, [each.origin for each in copies], max(lengths))
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
        needed = max([0, *lengths])
        new = self.places.join(other.rows)
        wide = max(self.columns, room_for(needed) if columns is None else columns)
        if self.places.end > self.capacity or wide > self.columns:
            self._resize(max(self.capacity, next_power(self.places.end)), wide)
        self._written -= set(new)
        self._written |= {
            place for place, origin in zip(new, other.places.of_rows, strict=True) if origin in other._written
        }
        if other._is_made:
            self._fill(new, self._pieces_of(other), other.places.of_rows, needed)
        elif self._is_made and self.zeroed:
            # Nothing was written there.
            self._fill(new, self._pieces, new, 0)
        self._used = max(self._used, needed)

    def copy(self, rows: Sequence[int], lengths: Sequence[int], capacity: int | None = None) -> RowCache:
        """Some rows, as a cache of their own; this one stays as it is.

        Args:
            rows: their numbers.
            lengths: tokens each of them has read.
            capacity: rows there is room for, at least so many; None: no more.
        """
        used = max([0, *lengths])
        other = RowCache(self.shapes, len(rows), room_for(used), capacity, self.zeroed)
        other._used = used
        if self._is_made:
            other._fill(range(len(rows)), other._pieces_of(self), [self.places.of_rows[row] for row in rows], used)
        return other

    def write(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Make whole rows ``[N, …, L, D]`` those of these numbers; columns behind theirs become zero."""
        width = tensors[0].shape[-2]
        self.widen(width)
        self._used = max(self._used, width)
        self._written |= {self.places.of_rows[row] for row in rows}
        places = [self.places.of_rows[row] for row in rows]
        self._fill(places, self._together(tensors), range(len(rows)), width, self.columns)

    def clear(self, lengths: Sequence[int]) -> None:
        """Zero what is behind so many columns of each row."""
        self._make()
        for piece in self._pieces:
            for place, length in zip(self.places.of_rows, lengths, strict=True):
                piece[:, place, ..., length:, :].zero_()

    def _line_up(self) -> None:
        """Move each row to the place of its number."""
        before, self.places = self.places.of_rows, Places(self.rows)
        self._written = {place for place, origin in enumerate(before) if origin in self._written}
        if not self._is_made:
            return
        first = next(place for place, origin in enumerate(before) if place != origin)
        # Copied at once: one after the other, some would be overwritten before they are read.
        moved = [piece[:, torch.tensor(before[first:], device=piece.device)] for piece in self._pieces]
        self._fill(range(first, len(before)), moved, range(len(before) - first), self._used)

    def _fill(
        self,
        places: Sequence[int],
        pieces: Sequence[Tensor],
        origins: Sequence[int],
        length: int,
        end: int | None = None,
    ) -> None:
        """Copy into these places what stands in others, and zero the columns behind that where they are to be zero.

        Args:
            places: of this cache.
            pieces: what is copied from, in pieces like those of this cache.
            origins: places there; where it is this cache, none of them is among ``places``.
            length: columns that are copied.
            end: columns behind it are free of anything already; None: those that nobody has used.
        """
        end = self._used if end is None else end
        runs = _runs(places, origins)
        for piece, theirs in zip(self._pieces, pieces, strict=True):
            # Several times as fast as one copy by indices.
            for to, origin, count in runs:
                if length:
                    copied = theirs[:, origin : origin + count, ..., :length, :]
                    piece[:, to : to + count, ..., :length, :].copy_(copied)
                if self.zeroed and end > length:
                    piece[:, to : to + count, ..., length:end, :].zero_()

    def _pieces_of(self, other: RowCache) -> list[Tensor]:
        """What another cache holds, in pieces like those of this one."""
        self._make()
        return other._pieces if other._groups == self._groups else self._together(other._held)

    def _together(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors in pieces like those of this cache."""
        self._make()
        grouped = ([tensors[number] for number in group] for group in self._groups)
        return [group[0][None] if len(group) == 1 else torch.stack(group) for group in grouped]

    def _resize(self, capacity: int, columns: int) -> None:
        before, used = self._held, min(self._used, columns)
        rows = min(self.capacity, capacity)
        self.columns, self.capacity = columns, capacity
        if not self._is_made:
            return
        self._allocate()
        for old, new in zip(before, self._held, strict=True):
            new[:rows, ..., :used, :] = old[:rows, ..., :used, :]

    @property
    def _is_made(self) -> bool:
        return bool(self._held)

    def _make(self) -> None:
        if not self._is_made:
            self._allocate()

    def _allocate(self) -> None:
        """Hold tensors of each shape in one piece ``[N, rows, …, columns, D]``, or in a few large ones."""
        new = torch.zeros if self.zeroed else unwritten
        by_shape: dict[Shape, list[int]] = {}
        for number, shape in enumerate(self.shapes):
            by_shape.setdefault(shape, []).append(number)
        groups, pieces = list[list[int]](), list[Tensor]()
        for shape, numbers in by_shape.items():
            size = (self.capacity, *shape.middle, self.columns, shape.width)
            most = max(1, LARGEST // max(1, math.prod(size) * shape.dtype.itemsize))
            for group in (numbers[begin : begin + most] for begin in range(0, len(numbers), most)):
                groups.append(group)
                pieces.append(new((len(group), *size), dtype=shape.dtype, device=shape.device))
        self._hold(pieces, groups)

    def _hold(self, pieces: list[Tensor], groups: list[list[int]], tensors: Sequence[Tensor] | None = None) -> None:
        """Hold tensors in pieces: what is done to all of a piece costs one call, however many layers there are.

        Args:
            pieces: ``[N, rows, …, columns, D]``.
            groups: numbers of the tensors of each.
            tensors: the same, each by itself; None: they are taken apart.
        """
        self._pieces, self._groups = pieces, groups
        if tensors is None:
            unbound = (tensor for piece in pieces for tensor in piece.unbind())
            numbered = dict(zip(itertools.chain(*groups), unbound, strict=True))
            tensors = [numbered[number] for number in range(len(numbered))]
        self._held = self._seen = list(tensors)

    def _first(self, rows: int) -> list[Tensor]:
        self._make()
        if self._seen and self._seen[0].shape[0] != rows:
            # Of the same strides as a tensor of so many rows, which is all that a compiled graph knows.
            self._seen = [tensor[:rows] for tensor in self._held]
        return self._seen


def unwritten(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of any numbers."""
    return torch.empty(size, dtype=dtype, device=device)


def _runs(places: Sequence[int], origins: Sequence[int]) -> list[tuple[int, int, int]]:
    """Places side by side to which places side by side are copied: the first of either, and how many."""
    runs: list[tuple[int, int, int]] = []
    for place, origin in zip(places, origins, strict=True):
        if runs and (place, origin) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((place, origin, 1))
    return runs


def room_for(columns: int) -> int:
    """Columns to reserve for so many: the next power of two, so that a long text is moved a few times only."""
    return max(COLUMNS, next_power(columns))


def next_power(number: int) -> int:
    """The lowest power of two that is not below a number."""
    return 1 << (number - 1).bit_length() if number > 1 else 1
