"""Several texts drawn for one input."""

from __future__ import annotations

import pytest

from bild import BigLittleDecoder, InputError
from tests.networks import build

LOOSE = {"do_sample": True, "temperature": 2.0, "seed": 7, "max_new_tokens": 6}
PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11]]


def pair(name: str) -> BigLittleDecoder:
    return BigLittleDecoder(build(name, seed=1), build(name, seed=2))


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize("width", [1, 4])
def test_they_are_those_of_the_input_given_several_times(name, width):
    decoder = pair(name)
    given = [prompt for prompt in PROMPTS for _ in range(3)]
    expected = [result.token_ids for result in decoder.generate(given, "speculative_sampling", **LOOSE)]
    assert len({tuple(ids) for ids in expected[:3]}) > 1
    asked = {"policy": "speculative_sampling", "num_return_sequences": 3, "batch_size": width, **LOOSE}
    for inputs in (PROMPTS, iter(PROMPTS)):
        assert [result.token_ids for result in decoder.generate(inputs, **asked)] == expected
    # The one input of a call, and a seed of each text's own.
    assert [result.token_ids for result in decoder.generate([PROMPTS[0]], **asked)] == expected[:3]
    seeds = [7, 8, 7]
    first, _, third = decoder.generate([PROMPTS[0]], **asked | {"seed": seeds})
    assert first.token_ids == third.token_ids == expected[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences is 2, and greedy texts of one input are all the same; set"),
        ({"num_return_sequences": 2, "num_beams": 2}, "the one result of a beam search has all its hypotheses"),
        ({"num_return_sequences": 0, **LOOSE}, "num_return_sequences is 0; allowed"),
        ({"num_return_sequences": 1.5, **LOOSE}, "num_return_sequences is 1.5; allowed"),
    ],
)
def test_what_is_refused(options, says):
    with pytest.raises(InputError, match=says):
        pair("llama").generate(PROMPTS, **options)


def test_an_input_that_cannot_be_used_is_counted_without_its_copies():
    with pytest.raises(InputError, match=r"^input 2 \(counted from 0\)"):
        pair("llama").generate([*PROMPTS[:2], [3] * 70], num_return_sequences=3, **LOOSE)


def test_a_stream_writes_one():
    with pytest.raises(InputError, match="num_return_sequences is not available here: one text is written for each"):
        pair("llama").stream(PROMPTS[0], num_return_sequences=2, **LOOSE)
