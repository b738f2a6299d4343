"""Seeds: 64 bits, and another sequence of random numbers for every row."""

from __future__ import annotations

import pytest

from bild import BigLittleDecoder, GenerationOptions, InputError
from bild.decoding import Policy
from bild.evaluation.own import PolicyMethod
from bild.generation.seeds import fold
from tests.networks import build

LOOSE = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12, "eos_token_id": []}


@pytest.fixture(scope="module")
def decoder() -> BigLittleDecoder:
    return BigLittleDecoder(build("gpt2", seed=1), build("gpt2", seed=2))


def texts(decoder, inputs, **options) -> list[list[int]]:
    return [result.token_ids for result in decoder.generate(inputs, "large", **LOOSE | options)]


def test_rows_of_one_call_draw_apart_and_the_first_has_the_seed_itself(decoder):
    five = texts(decoder, [[5, 6]] * 5, seed=7)
    assert len({tuple(ids) for ids in five}) == 5
    assert texts(decoder, [[5, 6]], seed=7) == texts(decoder, [[5, 6]], seed=[7]) == five[:1]
    assert texts(decoder, [[5, 6]] * 5, seed=7, batch_size=3) == five
    assert texts(decoder, [[5, 6]] * 5, seed=[fold(7, index) for index in range(5)]) == five


def test_fold_gives_every_row_of_every_seed_its_own():
    # The third value of SplitMix64 from 0, as published with it.
    assert fold(0, 1) == 0xE220A8397B1DCDAF and fold(0, 2) == 0x6E789E6AA1B965F4
    assert len({fold(seed, index) for seed in range(-50, 50) for index in range(100)}) == 10_000
    assert all(0 <= fold(seed, 3) < 2**64 for seed in (-(2**63), 2**64 - 1))


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63, 2**64 - 1, [2**64 - 1]])
def test_seeds_of_64_bits(decoder, seed):
    assert texts(decoder, [[5, 6]], seed=seed) == texts(decoder, [[5, 6]], seed=seed)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "7", [3, 2**70], True])
def test_other_seeds_are_refused(decoder, seed):
    with pytest.raises(InputError, match=r"allowed are whole numbers of 64 bits, -2\^63 to 2\^64 - 1"):
        decoder.generate([[5, 6]], do_sample=True, seed=seed)


def test_methods_of_an_evaluation_draw_by_the_text(bundled):
    options = {**LOOSE, "top_k": 0, "seed": 3}
    method = PolicyMethod("large", bundled, Policy.large(), options)
    first, second = method("Ein Hund."), method("Eine Katze läuft.")
    assert method("Ein Hund.").token_ids == first.token_ids  # whatever was decoded in between
    shared = bundled.generate("Eine Katze läuft.", "large", **options)[0].token_ids
    assert second.token_ids != shared


def test_seeds_are_numbers_of_the_row():
    asked = GenerationOptions(do_sample=True, seed=[5, 6])
    assert [asked.seed_of(index) for index in range(2)] == [5, 6]
    with pytest.raises(InputError, match="2 seeds for more inputs"):
        asked.seed_of(2)
