"""Rows of a cache: what is moved, what is zero, and how large the storage is."""

from __future__ import annotations

from random import Random

import pytest
import torch

from bild.models.cache import Places, RowCache, Shape

SHAPES = [Shape((2,), 3, torch.float64, torch.device("cpu"))] * 2 + [Shape((1,), 5, torch.float32, torch.device("cpu"))]


def filled(lengths: list[int], first: int = 1) -> RowCache:
    """A cache whose row ``b`` holds the number ``first + b``, and NaN behind what it has read."""
    cache = RowCache(SHAPES, len(lengths), 32)
    cache.reserve(max(lengths) + 3)
    for tensor in cache.tensors:
        for b, length in enumerate(lengths):
            tensor[b, :, :length] = first + b
            tensor[b, :, length : max(lengths) + 3] = torch.nan
    return cache


def numbers(cache: RowCache, lengths: list[int]) -> list[int]:
    """What each row holds, the same in every tensor and column that it has read."""
    found = []
    for b, length in enumerate(lengths):
        held = {value for tensor in cache.tensors for value in tensor[b, :, :length].flatten().tolist()}
        assert len(held) <= 1
        found.append(int(held.pop()) if held else 0)
    return found


@pytest.mark.parametrize("rows", [[0], [2], [0, 2], [2, 1, 0], [1, 1], [0, 0, 0, 0, 1], [0, 1, 2], [2, 0, 2, 1, 1, 1]])
def test_rows_that_stay_are_in_their_new_order(rows):
    lengths = [4, 9, 2]
    cache = filled(lengths)
    kept = [lengths[b] for b in rows]
    cache.keep(rows, kept)
    assert numbers(cache, kept) == [b + 1 for b in rows]
    assert all(tensor.shape[0] == len(rows) for tensor in cache.tensors)


def test_rows_before_the_first_that_goes_are_not_moved():
    cache = filled([4, 9, 2, 5])
    for tensor in cache.tensors:
        tensor[0, :, 20:] = 7
    before = [tensor.data_ptr() for tensor in cache.tensors]
    cache.keep([0, 1, 3], [4, 9, 5])
    assert [tensor.data_ptr() for tensor in cache.tensors] == before
    assert all((tensor[0, :, 20:] == 7).all() for tensor in cache.tensors)
    assert numbers(cache, [4, 9, 5]) == [1, 2, 4]


def named(cache: RowCache, lengths: list[int]) -> list[int]:
    """What each row holds, read in its place."""
    held = [tensor[torch.tensor(cache.places.of_rows)] for tensor in cache.in_places()]
    found = [{value for tensor in held for value in tensor[b, :, :n].flatten().tolist()} for b, n in enumerate(lengths)]
    assert all(len(values) == 1 for values in found)
    return [int(values.pop()) for values in found]


def test_rows_that_are_read_in_their_places_are_not_moved():
    cache = filled([4, 9, 2, 5])
    before = [tensor.clone() for tensor in cache.tensors]
    cache.keep([3, 1], [5, 9])
    assert cache.places.of_rows == [3, 1] and named(cache, [5, 9]) == [4, 2]
    for tensor, was in zip(cache.in_places(), before, strict=True):
        torch.testing.assert_close(tensor, was, equal_nan=True)
    cache.join(filled([3, 1, 2], first=7), [3, 1, 2])
    assert cache.places.of_rows == [3, 1, 0, 2, 4] and named(cache, [5, 9, 3, 1, 2]) == [4, 2, 7, 8, 9]
    assert all(tensor[torch.tensor([0, 2, 4]), :, 3:].eq(0).all() for tensor in cache.in_places())
    # Whoever asks for them side by side gets them so.
    assert numbers(cache, [5, 9, 3, 1, 2]) == [4, 2, 7, 8, 9] and cache.places.are_in_order


def test_places_depend_on_what_was_told_and_on_nothing_else():
    rng = Random(5)
    for _ in range(20):
        rows = rng.randint(1, 4)
        places, lengths = Places(rows), [rng.randint(1, 9) for _ in range(rows)]
        cache = filled(lengths)
        holds = list(range(1, rows + 1))
        for step in range(12):
            if rng.random() < 0.5 and len(lengths) < 6:
                new = [rng.randint(1, 40) for _ in range(rng.randint(1, 3))]
                cache.join(filled(new, first=100 * step + 10), new)
                places.join(len(new))
                holds += [100 * step + 10 + b for b in range(len(new))]
                lengths += new
            else:
                stay = [rng.randrange(len(lengths)) for _ in range(rng.randint(1, 4))]
                lengths, holds = [lengths[b] for b in stay], [holds[b] for b in stay]
                cache.keep(stay, lengths)
                places.keep(stay)
            assert cache.places.of_rows == places.of_rows
            assert len(set(places.of_rows)) == len(lengths) and named(cache, lengths) == holds
        assert numbers(cache, lengths) == holds


def test_copies_of_a_row_that_never_change_are_made_once():
    whole = [tensor[..., :9, :].clone() for tensor in filled([4, 9]).tensors]
    cache = RowCache(SHAPES, 2, 9)
    cache.write([0, 1], whole)

    def copied(rows, lengths):
        """Which places are written, when these rows go on."""
        written = []
        fill = cache._fill
        cache._fill = lambda places, *rest: (written.extend(places), fill(places, *rest))
        cache.keep(rows, lengths, grows=False)
        cache._fill = fill
        return written

    assert len(copied([0, 0, 0, 1], [4, 4, 4, 9])) == 2
    # Two of three go, and a copy of the third comes back to where they were; another row gets a place of its own.
    assert copied([2, 3], [4, 9]) == [] and copied([0, 0, 0, 1], [4, 4, 4, 9]) == []
    assert len(copied([0, 0, 0, 3, 3], [4, 4, 4, 9, 9])) == 1
    assert named(cache, [4, 4, 4, 9, 9]) == [1, 1, 1, 2, 2]
    # One that is written only when its copy has gone left nothing where that was.
    cache.join(RowCache(SHAPES, 1, 1), [0])
    assert len(copied([0, 5, 5], [4, 0, 0])) == 1 and copied([0, 1], [4, 0]) == []
    cache.write([1], [tensor[1:2, ..., :9, :] for tensor in whole])
    assert len(copied([0, 1, 1], [4, 9, 9])) == 1 and named(cache, [4, 9, 9]) == [1, 2, 2]


@pytest.mark.parametrize("first", ["of its own", "of tensors"])
def test_rows_in_one_piece_join_rows_that_are_not(first):
    """A cache that was made holds all tensors of a shape in one piece, one of given tensors each by itself."""
    own, given = filled([4, 9]), RowCache.holding([each.clone() for each in filled([9, 5], first=6).tensors])
    one, other, lengths = (own, given, [9, 5]) if first == "of its own" else (given, own, [4, 9])
    one.join(other, lengths)
    assert numbers(one, [4, 9, 9, 5] if one is own else [9, 5, 4, 9]) == ([1, 2, 6, 7] if one is own else [6, 7, 1, 2])
    one.keep([3, 0, 3], [5, 4, 5] if one is own else [9, 9, 9])
    assert numbers(one, [5, 4, 5] if one is own else [9, 9, 9]) == ([7, 1, 7] if one is own else [2, 6, 2])


def test_whoever_gets_a_place_sees_nothing_of_its_last_row():
    cache = filled([4, 9, 2])
    cache.keep([0], [4])
    joining = filled([3, 1], first=8)
    cache.join(joining, [3, 1])
    assert numbers(cache, [4, 3, 1]) == [1, 8, 9]
    for tensor in cache.tensors:
        # A number behind its own tokens may be the row's own padding, up to the longest that came with it.
        assert tensor[1:, :, 3:].eq(0).all()


def test_columns_that_need_not_be_zero_cost_nothing_until_they_are_cleared():
    # conftest.py fills what is unwritten with NaN.
    cache = RowCache(SHAPES, 2, 32, zeroed=False)
    assert all(tensor.isnan().all() for tensor in cache.tensors)
    cache.reserve(4)
    for tensor in cache.tensors:
        tensor[0, :, :4], tensor[1, :, :2] = 1, 2
    cache.join(filled([3], first=8), [3])
    cache.reserve(40)
    copy = cache.copy([1, 2], [2, 3])
    assert numbers(cache, [4, 2, 3]) == [1, 2, 8] and numbers(copy, [2, 3]) == [2, 8]
    assert all(tensor[0, :, 4:].isnan().all() for tensor in cache.tensors)
    assert all(tensor[:, :, 3:].isnan().all() for tensor in copy.tensors)
    cache.clear([4, 2, 3])
    assert numbers(cache, [4, 2, 3]) == [1, 2, 8]
    for tensor in cache.tensors:
        assert all(tensor[b, :, length:].eq(0).all() for b, length in enumerate([4, 2, 3]))


def test_storage_is_made_when_it_is_read(monkeypatch):
    made: list[tuple[int, ...]] = []

    def unwritten(size, **how):
        made.append(tuple(size))
        return torch.full(size, torch.nan, **how)

    monkeypatch.setattr("bild.models.cache.unwritten", unwritten)
    cache = RowCache(SHAPES, 1, 32, zeroed=False)
    cache.reserve(33)
    cache.join(RowCache(SHAPES, 2, 32, zeroed=False), [0, 0])
    cache.keep([2, 0, 0], [0, 0, 0])
    copy = cache.copy([1], [0])
    assert made == [] and cache.capacity == 4 and cache.columns == 64
    assert all(tensor.shape[0] == 3 and tensor.shape[-2] == 64 for tensor in cache.in_places())
    assert made == [(2, 4, 2, 64, 3), (1, 4, 1, 64, 5)]
    # Whoever has read something joins rows for whom nothing was made, and the other way round.
    for one, other in ((copy, filled([3], first=8)), (filled([3], first=8), cache.copy([0], [0]))):
        lengths = [0, 3] if one is copy else [3, 0]
        one.join(other, [3] if one is copy else [0])
        assert numbers(one, lengths) == [8 if length else 0 for length in lengths]


def test_large_storage_is_in_several_pieces_and_joins_what_is_in_one(monkeypatch):
    monkeypatch.setattr("bild.models.cache.LARGEST", 2 * 2 * 64 * 3 * 8)
    cache = filled([4, 9])
    assert len(cache._pieces) == 2
    cache.reserve(33)
    # Two tensors of two rows fit one piece with 32 columns, but not with 64 and four rows.
    cache.join(filled([3, 1], first=8), [3, 1])
    assert len(cache._pieces) == 3
    assert numbers(cache, [4, 9, 3, 1]) == [1, 2, 8, 9]
    other = cache.copy([3, 1], [1, 9])
    assert numbers(other, [1, 9]) == [9, 2] and len(other._pieces) == 2
    other.join(cache, [4, 9, 3, 1])
    assert numbers(other, [1, 9, 4, 9, 3, 1]) == [9, 2, 1, 2, 8, 9]


def test_storage_grows_by_powers_of_two_and_shrinks_with_its_longest_row():
    cache = filled([4, 9])
    cache.reserve(33)
    assert cache.columns == 64 and numbers(cache, [4, 9]) == [1, 2]
    cache.reserve(200)
    assert cache.columns == 256
    cache.keep([0], [4])
    assert cache.columns == 32 and numbers(cache, [4]) == [1]
    assert all(tensor.is_contiguous() for tensor in cache.tensors)


def test_a_copy_of_some_rows_is_a_cache_of_its_own():
    lengths = [3, 1, 2, 4]
    cache = filled(lengths)
    cache.keep([3, 0, 2], [4, 3, 2])
    copy = cache.copy([2, 0], [2, 4])
    assert numbers(copy, [2, 4]) == [3, 4]
    for tensor in copy.tensors:
        tensor += 10
    assert numbers(cache, [4, 3, 2]) == [4, 1, 3]
    cache.join(cache.copy([1], [3]), [3])
    copy.keep([1, 0], [4, 2])
    assert numbers(cache, [4, 3, 2, 3]) == [4, 1, 3, 1] and numbers(copy, [4, 2]) == [14, 13]


def test_a_joined_cache_has_room_for_rows_to_come():
    cache = filled([4])
    for count in range(2, 6):
        cache.join(filled([2], first=count), [2])
    assert cache.capacity == 8 and numbers(cache, [4, 2, 2, 2, 2]) == [1, 2, 3, 4, 5]
    before = [tensor.data_ptr() for tensor in cache.tensors]
    cache.join(filled([2], first=6), [2])
    assert [tensor.data_ptr() for tensor in cache.tensors] == before


def test_a_few_rows_are_as_a_graph_takes_them():
    """Of the strides of a tensor of so many rows."""
    cache = filled([4, 9, 2])
    cache.keep([0, 1], [4, 9])
    for tensor, shape in zip(cache.tensors, SHAPES, strict=True):
        assert tensor.stride() == torch.empty(2, *shape.middle, 32, shape.width).stride()
