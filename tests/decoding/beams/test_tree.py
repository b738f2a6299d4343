"""What a model that reads hypotheses looks up in its scores."""

from __future__ import annotations

import math

import pytest
import torch

from bild.decoding.beams.tree import FEW, GROUP, largest

COUNT = 5
WIDE = GROUP * FEW * COUNT


@pytest.mark.parametrize("size", [COUNT, 100, WIDE - 1, WIDE, WIDE + 1, WIDE + GROUP - 1, 3 * WIDE])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2)])
def test_the_largest_are_those_of_topk(shape, size):
    # Permutations: no two are equal, and of equals topk takes any.
    values = torch.stack([torch.randperm(size) for _ in range(math.prod(shape))]).view(*shape, size).float()
    # Some of them where groups begin and end, and behind the last whole one.
    for place in (0, GROUP - 1, GROUP, size - 1):
        if place < size:
            values[..., place] += size
    found, places = largest(values, COUNT)
    expected = values.topk(COUNT)
    assert torch.equal(found, expected.values) and torch.equal(places, expected.indices)


def test_what_is_no_number_is_first_and_what_is_forbidden_last():
    values = torch.full((3, WIDE + 7), -math.inf)
    values[0, 70], values[0, WIDE + 3], values[1, WIDE + 5] = 2.0, math.nan, 1.0
    found, places = largest(values, COUNT)
    assert math.isnan(found[0, 0]) and found[0, 1] == 2 and places[0, :2].tolist() == [WIDE + 3, 70]
    assert found[1, 0] == 1 and places[1, 0] == WIDE + 5
    assert (found[0, 2:] == -math.inf).all() and (found[2] == -math.inf).all()
    assert all(len(set(row)) == COUNT for row in places.tolist())
