"""The noise that draws the continuations of a beam search."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import torch

from bild.decoding.beams.noise import Noise
from tests.decoding.test_sampling import chi_square_p


def noise(seed: int) -> Noise:
    return Noise(torch.Generator().manual_seed(seed))


def test_it_belongs_to_the_seed_and_to_the_tokens_before():
    here = noise(7).after([[3, 1, 2]], 5)[0]
    assert torch.equal(here, noise(7).after([[3, 1, 2]], 5)[0]) and here.dtype == torch.float64
    others = [noise(8).after([[3, 1, 2]], 5)[0], noise(7).after([[3, 2, 1]], 5)[0], noise(7).after([[1, 2]], 5)[0]]
    assert all(not torch.isclose(here, other).any() for other in others)


def test_a_smaller_vocabulary_has_the_beginning_of_a_larger_ones():
    assert torch.equal(noise(1).after([[4]], 1000)[0][:37], noise(1).after([[4]], 37)[0])


def test_any_seed_of_a_generator_will_do():
    for seed in (-1, 2**63 - 1, 0):
        assert noise(seed).after([[]], 3)[0].isfinite().all()


def test_without_a_generator_the_global_one_decides():
    torch.manual_seed(5)
    first = [Noise(None).after([[1]], 3)[0] for _ in range(2)]
    torch.manual_seed(5)
    assert not torch.equal(*first) and torch.equal(first[0], Noise(None).after([[1]], 3)[0])


def test_the_largest_sums_are_a_draw_without_replacement():
    """Chi-square over ordered pairs of four tokens, over seeds and over what stands before alike."""
    p, draws = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64), 6000
    expected = {(a, b): draws * float(p[a] * p[b] / (1 - p[a])) for a, b in itertools.permutations(range(4), 2)}
    for each in (
        [noise(seed).after([[9]], 4)[0] for seed in range(draws)],
        [noise(3).after([[at]], 4)[0] for at in range(draws)],
    ):
        seen = Counter(tuple((p.log() + gumbel).topk(2).indices.tolist()) for gumbel in each)
        assert chi_square_p(dict(seen), expected) > 0.01


def test_no_token_is_beyond_all_bounds():
    values = noise(0).after([[]], 200_000)[0]
    # Of so many the largest is near their logarithm.
    assert values.isfinite().all() and abs(float(values.max()) - math.log(200_000)) < 5
