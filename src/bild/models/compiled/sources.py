"""The sources of a batch on the compiled runtime: encoded once, and not before a pass needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bild.models.cache import Places, RowCache, Shape, next_power, room_for
from bild.models.compiled import ahead
from bild.models.compiled.calling import mask_of
from bild.models.compiled.graphs import halves
from bild.models.sources import distinct_of

CALL = 8
"""Tokens of padding that cost about as much as another pass of the encoder: between one, where arithmetic is slow (half
a millisecond a token of the bundled large model by AVX2), and some ten, where it is fast."""
Encoder = Callable[[Sequence[Sequence[int]]], list[Tensor]]
"""Keys, then values, of some sources in every decoder layer, each ``[N, H, S, D]``."""


class Ready(NamedTuple):
    """What a pass looks up."""

    held: list[Tensor]
    """Keys, then values, as the cache gives them."""
    counts: list[int]
    """Tokens of the source in each place that can be seen."""
    tensors: list[Tensor]
    """Keys, then values, then the mask that follows from both."""


class Sources:
    """Keys and values of each row's source in every decoder layer, padded on the right to the longest.

    Args:
        tokens: encoder input ids of each row.
        encode: makes them.
        device: where the mask is put.
        rounds_up: whether rows and columns come in powers of two.
        in_places: whether rows stay in their places when others go, and are looked up there.
    """

    def __init__(
        self,
        tokens: Sequence[Sequence[int]],
        encode: Encoder,
        device: torch.device,
        rounds_up: bool = False,
        in_places: bool = False,
    ) -> None:
        self.tokens, self._encode, self._device = list(tokens), encode, device
        self._rounds_up, self._in_places = rounds_up, in_places
        self._places = Places(len(self.tokens))
        self._encoded = [False] * len(self.tokens)
        self._cache: RowCache | None = None
        self._ready: Ready | None = None
        self._is_stale = False
        """Whether rows have gone, come or been encoded since."""
        self._coming: Future[list[Tensor]] | None = None

    def begin(self) -> None:
        """Encode all of them in another thread, while something else is done that does not need them yet."""
        if not any(self._encoded):
            self._coming = ahead.begin(partial(self._encode_once, list(self.tokens)))

    @property
    def are_coming(self) -> bool:
        """Whether another thread encodes them, begun and not asked for yet."""
        return self._coming is not None

    def tensors(self, needed: Sequence[int], rows: int) -> list[Tensor]:
        """Keys, then values, then the mask ``[B, 1, 1, S]``: of the rows, or of the places up to the last in use.

        Args:
            needed: rows that read something in this pass; only theirs are encoded.
            rows: how many the pass has, padding included.
        """
        self._arrive()
        missing = [b for b in needed if not self._encoded[b]]
        if missing:
            self._add(missing)
        ready = self._ready
        if ready is None or self._is_stale or not (self._in_places or ready.tensors[-1].shape[0] == rows):
            ready = self._ready = self._look_up(rows, ready)
            self._is_stale = False
        return ready.tensors

    def _look_up(self, rows: int, before: Ready | None) -> Ready:
        """What so many rows look up: as before, if they only changed their order or went where copies stood."""
        assert self._cache is not None
        held = self._cache.in_places() if self._in_places else self._cache.side_by_side(rows)
        # A row that is not encoded yet reads nothing; what its padding sees is zero, and not nothing at all.
        counts = [1] * (self._cache.places.end if self._in_places else rows)
        for place, row, done in zip(self._cache.places.of_rows, self.tokens, self._encoded, strict=True):
            counts[place] = len(row) if done else 1
        if before is not None and before.held is held and before.counts == counts:
            return before
        return Ready(held, counts, [*held, mask_of(counts, self._cache.columns, self._device)])

    def keep(self, rows: Sequence[int]) -> None:
        """As :meth:`RowCache.keep`."""
        self._arrive()
        self.tokens = [self.tokens[b] for b in rows]
        self._encoded = [self._encoded[b] for b in rows]
        self._is_stale = True
        if self._cache is None:
            self._places.keep(rows)
        else:
            self._cache.keep(rows, self._read, self._room(), grows=False)

    def join(self, other: Sources) -> None:
        """As :meth:`RowCache.join`."""
        self._arrive()
        other._arrive()
        self.tokens += other.tokens
        self._encoded += other._encoded
        self._is_stale = True
        shapes = next((cache.shapes for cache in (self._cache, other._cache) if cache is not None), None)
        if shapes is None:
            self._places.join(len(other.tokens))
            return
        longest = self._room()
        if self._cache is None:
            self._cache = self._new(shapes)
        joining = RowCache(shapes, len(other.tokens), 1) if other._cache is None else other._cache
        self._cache.join(joining, other._read, longest)

    def _room(self) -> int:
        longest = max(map(len, self.tokens))
        return room_for(longest) if self._rounds_up else longest

    def _new(self, shapes: Sequence[Shape]) -> RowCache:
        capacity = next_power(len(self._places.of_rows)) if self._rounds_up else None
        return RowCache(shapes, self._places, self._room(), capacity)

    @property
    def _read(self) -> list[int]:
        return [len(row) if done else 0 for row, done in zip(self.tokens, self._encoded, strict=True)]

    def _arrive(self) -> None:
        """Take in what was begun."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._store(range(len(self.tokens)), coming.result())

    def _add(self, rows: Sequence[int]) -> None:
        # On a GPU padding costs nothing and a pass does.
        lengths = [len(self.tokens[b]) for b in rows]
        for group in [range(len(rows))] if self._rounds_up else alike(lengths):
            together = [rows[at] for at in group]
            self._store(together, self._encode_once([self.tokens[b] for b in together]))

    def _encode_once(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        """Keys and values of some sources; one that is there several times, for several texts, is encoded once."""
        distinct, numbers = distinct_of(tokens)
        tensors = self._encode(distinct)
        if len(distinct) == len(tokens):
            return tensors
        chosen = torch.tensor(numbers, device=tensors[0].device)
        return [tensor[chosen] for tensor in tensors]

    def _store(self, rows: Sequence[int], tensors: list[Tensor]) -> None:
        if len(rows) == len(self.tokens) and self._cache is None and self._places.are_in_order and not self._rounds_up:
            self._cache = RowCache.holding(tensors, self._places)
        else:
            if self._cache is None:
                self._cache = self._new([Shape.of(tensor) for tensor in tensors])
            self._cache.write(rows, tensors)
        for b in rows:
            self._encoded[b] = True
        self._is_stale = True


def alike(lengths: Sequence[int], call: int = CALL) -> list[list[int]]:
    """Which sources to encode together, so that padding and passes cost least in all.

    Args:
        lengths: tokens of each source.
        call: tokens that cost as much as a pass.

    Returns:
        Groups of places in ``lengths``, each in ascending order; no source is longer than one of a later group.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # Of the shortest sources, what they cost at least, and where the last group then begins.
    least, begins = [0], [0]
    for end in range(1, len(order) + 1):
        width = lengths[order[end - 1]]
        cost, begin = min((least[begin] + width * (end - begin) + call, begin) for begin in range(end))
        least.append(cost)
        begins.append(begin)
    groups, end = list[list[int]](), len(order)
    while end:
        groups.insert(0, sorted(order[begins[end] : end]))
        end = begins[end]
    return groups


class PartOfSources:
    """The sources of a batch as one of two models looks them up whose keys and values are made together.

    Args:
        whole: those of both models.
        own: which of the layers are this model's.
        is_borrowed: whether the other model keeps and joins them.
    """

    def __init__(self, whole: Sources, own: slice, is_borrowed: bool = False) -> None:
        self.whole, self.own, self.is_borrowed = whole, own, is_borrowed

    @property
    def are_coming(self) -> bool:
        """As :attr:`Sources.are_coming`."""
        return self.whole.are_coming

    def of_another(self, own: slice) -> PartOfSources:
        """The same sources as the other model looks them up."""
        return PartOfSources(self.whole, own, is_borrowed=True)

    def begin(self) -> None:
        """Nothing: the small model needs them for its first token."""

    def tensors(self, needed: Sequence[int], rows: int) -> list[Tensor]:
        """As :meth:`Sources.tensors`."""
        return part_of(self.whole.tensors(needed, rows), self.own)

    def keep(self, rows: Sequence[int]) -> None:
        """As :meth:`Sources.keep`."""
        if not self.is_borrowed:
            self.whole.keep(rows)

    def join(self, other: PartOfSources) -> None:
        """As :meth:`Sources.join`."""
        if not self.is_borrowed:
            self.whole.join(other.whole)


def part_of(source: list[Tensor], own: slice) -> list[Tensor]:
    """Keys, values and mask of the source, of some of the layers."""
    keys, values = halves(source[:-1])
    return [*keys[own], *values[own], *source[-1:]]
