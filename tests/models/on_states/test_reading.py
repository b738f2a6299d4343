"""A small model that reads states, beside a slow obvious one."""

from __future__ import annotations

from random import Random
from unittest.mock import patch

import pytest
import torch

from bild import BigLittleDecoder
from bild.cli.info import describe
from bild.errors import InputError, LoadError
from bild.models import run_pair
from bild.models.compiled import compiling
from tests.models.on_states.pairs import CLOSE, by_definition, states_pair
from tests.networks import build, random_tokens

NAMES = ["llama", "gpt2", "qwen2"]


@pytest.mark.parametrize("name", NAMES)
def test_reads_states_of_the_large_model_and_then_its_own(name):
    rng, (large, small) = Random(3), states_pair(name)
    accurate, cheap = run_pair(large, small, "eager")
    for _ in range(5):
        text = random_tokens(rng, 9)
        scorer = accurate.start([[]])
        reader = cheap.beside(scorer, [[]])
        # All but the last of the prompt are read by the large model, whoever asks.
        torch.testing.assert_close(reader.extend([text[:4]])[0, 0], by_definition(large, small, text[:4], 3), **CLOSE)
        assert scorer.lengths == [3]
        for end in (5, 6):
            found = reader.extend([text[end - 1 : end]])[0, 0]
            torch.testing.assert_close(found, by_definition(large, small, text[:end], 3), **CLOSE)
        # The large model reads the draft, and keeps one token of two.
        scorer.extend([text[3:6]])
        for each in (scorer, reader):
            each.truncate([5])
        assert reader.lengths == [4]
        other = [text[4], text[7]]
        found = reader.extend([other])[0, 0]
        torch.testing.assert_close(found, by_definition(large, small, [*text[:4], *other], 5), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_read_as_alone(name):
    rng, (large, small) = Random(5), states_pair(name)
    accurate, cheap = run_pair(large, small, "eager")
    texts = [random_tokens(rng, count) for count in (7, 3, 5)]
    scorer = accurate.start([[]] * 3)
    reader = cheap.beside(scorer, [[]] * 3)
    reader.extend([text[:2] for text in texts])
    reader.extend([texts[0][2:6], [], texts[2][2:3]])
    scorer.keep([2, 0])
    reader.keep([2, 0])
    more = accurate.start([[]])
    joining = cheap.beside(more, [[]])
    joining.extend([texts[1][:2]])
    scorer.join(more)
    reader.join(joining)
    # Whoever moves goes on from what the large model has read, which is the first token of each.
    assert reader.lengths == [1, 1, 1]
    found = reader.extend([texts[2][1:4], texts[0][1:7], texts[1][1:3]])
    for row, (text, end) in enumerate([(texts[2], 4), (texts[0], 7), (texts[1], 3)]):
        torch.testing.assert_close(found[row, 0], by_definition(large, small, text[:end], end - 1), **CLOSE)


@pytest.mark.parametrize("runtime", ["eager", pytest.param("static", marks=pytest.mark.compiles)])
def test_exact_is_the_large_model_alone(runtime):
    dtype = torch.float64 if runtime == "eager" else torch.float32
    rng, (large, small) = Random(7), states_pair("llama", dtype=dtype)
    pair = BigLittleDecoder(large, small, runtime=runtime)
    assert pair.large.is_compiled == pair.small.is_compiled == (runtime == "static")
    prompts = [random_tokens(rng, count) for count in (1, 3, 8, 5, 2, 6)]
    alone = pair.generate(prompts, "large", max_new_tokens=24, eos_token_id=None)
    for size in (1, 3):
        found = pair.generate(prompts, "exact", max_new_tokens=24, eos_token_id=None, batch_size=size)
        assert [result.token_ids for result in found] == [result.token_ids for result in alone]
        drafted = sum(each.stats.num_draft_tokens for each in found)
        assert 0 < sum(each.stats.num_accepted_tokens for each in found) < drafted


@pytest.mark.compiles
def test_compiled_as_uncompiled():
    rng, (large, small) = Random(9), states_pair("llama", dtype=torch.float32)
    # As in tests.compiled: matrix products of Inductor's own cost ten seconds a graph.
    with patch.object(compiling, "TEMPLATES", compiling.LIBRARY):
        pairs = [run_pair(large, small, runtime) for runtime in ("eager", "static")]
    scorers = [accurate.start([[]] * 2) for accurate, _ in pairs]
    readers = [cheap.beside(scorer, [[]] * 2) for (_, cheap), scorer in zip(pairs, scorers, strict=True)]
    for _ in range(6):
        new = [random_tokens(rng, rng.randint(1, 12)), random_tokens(rng, rng.randint(1, 12))]
        one, other = (reader.extend(new) for reader in readers)
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-4)
        lengths = [length - rng.randint(0, 3) for length in readers[0].lengths]
        for each in (*scorers, *readers):
            each.truncate(lengths)
        assert readers[0].lengths == readers[1].lengths and scorers[0].lengths == scorers[1].lengths


def test_what_cannot_be_is_refused():
    large, small = states_pair("llama")
    with pytest.raises(InputError, match="cannot write alone"):
        BigLittleDecoder(large, small, runtime="eager").generate([[3, 4]], "small", max_new_tokens=3)
    with pytest.raises(LoadError, match="of width"):
        run_pair(build("llama", dtype=torch.float64, width=64), small, "eager")


def test_beams_are_searched_by_the_large_model_alone():
    large, small = states_pair("llama")
    pair = BigLittleDecoder(large, small, runtime="eager")
    alone = BigLittleDecoder(large, drafter="ngram", runtime="eager")
    options = {"num_beams": 3, "max_new_tokens": 8}
    assert (
        pair.generate([[3, 4]], "large", **options)[0].token_ids
        == alone.generate([[3, 4]], "large", **options)[0].token_ids
    )
    with pytest.raises(InputError, match="layers of a beam search"):
        pair.generate([[3, 4]], "exact", **options)


def test_what_is_known_of_a_pair():
    """Steps are timed though the small model goes on from the large one."""
    facts = describe(BigLittleDecoder(*states_pair("llama")))
    assert facts["cost_ratio"] > 0
