"""Every option reaches the loop, with transformers' meaning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from bild import GenerationOptions
from bild.errors import InputError
from tests.generation.test_decoder import greedy

TEXT = "Ein kleiner Junge in einem gelben Regenmantel hält die Hand seiner Großmutter."


def first(decoder, **options) -> list[int]:
    return decoder.generate(TEXT, "large", **options)[0].token_ids


CHANGES = {
    "max_new_tokens": 4,
    "min_new_tokens": 25,
    "min_length": 25,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "forced_bos_token_id": 300,
    "begin_suppress_tokens": "first",
    "suppress_tokens": "third",
    "bad_words_ids": "second and third",
    "eos_token_id": "third or the end",
}


def value_of(name: str, plain: list[int]):
    """Options that name tokens name those of the plain text, so that they change it."""
    named = {
        "first": [plain[0]],
        "third": [plain[2]],
        "second and third": [plain[1:3]],
        "third or the end": [plain[2], plain[-1]],
    }
    value = CHANGES[name]
    return named[value] if isinstance(value, str) else value


@pytest.mark.parametrize("policy", ["exact", "large"])
@pytest.mark.parametrize("name", CHANGES)
def test_as_transformers(bundled, name, policy):
    plain = first(bundled)
    option = {name: value_of(name, plain)}
    (result,) = bundled.generate(TEXT, policy, **option)
    assert result.token_ids == greedy(bundled, TEXT, **option) != plain


def test_forced_end_at_the_longest_length(bundled):
    option = {"max_new_tokens": 5, "forced_eos_token_id": 1}
    (result,) = bundled.generate(TEXT, "exact", **option)
    assert result.token_ids == greedy(bundled, TEXT, **option) and result.token_ids[4] == 1
    assert result.finish_reason == "eos"


def test_source_ngrams_are_not_copied(bundled):
    source = bundled.tokenizer(TEXT).input_ids
    option = {"encoder_no_repeat_ngram_size": 1}
    (result,) = bundled.generate(TEXT, "exact", **option)
    assert result.token_ids == greedy(bundled, TEXT, **option)
    assert not set(result.token_ids[:-1]) & set(source[:-1]) and set(first(bundled)[:-1]) & set(source[:-1])


def test_decoder_start(bundled):
    assert first(bundled, decoder_start_token_id=40) != first(bundled)


def test_stop_strings(bundled):
    text = bundled.generate(TEXT, "large")[0].text
    word = text.split()[3]
    for policy in ("bild", "exact", "large", "small"):
        (result,) = bundled.generate(TEXT, policy, stop_strings=[word, "unlikely"])
        assert result.finish_reason == ("stop" if word in result.text else "eos")
        assert word not in result.text[: -len(word) - 4]
    (result,) = bundled.generate(TEXT, "exact", stop_strings=word)
    ids = greedy(bundled, TEXT, stop_strings=word, tokenizer=bundled.tokenizer)
    assert result.token_ids == ids and result.finish_reason == "stop"


@pytest.mark.parametrize("sharp", [{"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
@pytest.mark.parametrize("policy", ["large", "exact"])
def test_sharp_sampling_is_greedy(bundled, policy, sharp):
    loose = {"top_k": 0, "top_p": 1.0}
    (result,) = bundled.generate(TEXT, policy, do_sample=True, seed=3, **(loose | sharp))
    assert result.token_ids == first(bundled)


def test_seeds(bundled):
    loose = {"do_sample": True, "temperature": 1.5, "top_k": 0}
    texts = [r.text for r in bundled.generate([TEXT] * 4, "bild", seed=[1, 2, 3, 1], **loose)]
    assert texts[0] == texts[3] and len(set(texts)) == 3
    batched = [r.text for r in bundled.generate([TEXT] * 4, "bild", seed=[1, 2, 3, 1], batch_size=4, **loose)]
    assert batched == texts
    folded = [r.text for r in bundled.generate([TEXT] * 2, "bild", seed=2, **loose)]
    assert folded[0] == texts[1] != folded[1]
    unseeded = [r.text for r in bundled.generate([TEXT] * 3, "large", **loose)]
    assert len(set(unseeded)) > 1


def test_the_checkpoints_config_speaks_where_the_call_does_not():
    config = GenerationConfig(
        eos_token_id=[1, 7], forced_bos_token_id=5, suppress_tokens=[3], max_length=60, do_sample=True, temperature=0.3
    )
    asked = GenerationOptions.over(config, {"temperature": None, "top_k": 4, "do_sample": True})
    assert asked.eos_token_ids == {1, 7} and asked.forced_bos_token_id == 5 and asked.suppress_tokens == [3]
    assert (asked.new_tokens(1), asked.do_sample, asked.temperature, asked.top_k) == (59, True, 0.3, 4)
    assert GenerationOptions.over(config, {}).do_sample is False


def test_warp_is_the_chain_of_transformers():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    warped = GenerationOptions(temperature=0.5, top_k=2).warp()(logits)
    assert warped.tolist() == [[-torch.inf, -torch.inf, 4.0, 6.0]]
    assert GenerationOptions(temperature=1.0, top_k=0, top_p=1.0).warp() is None
    assert torch.equal(GenerationOptions(temperature=2).warp()(logits), logits / 2)


ENDS = [5, [5, 6], (6, 5), np.int64(5), np.array([5, 6]), torch.tensor(5), torch.tensor([6, 5])]


@pytest.mark.parametrize("ends", ENDS)
def test_end_tokens_as_any_library_has_them(ends):
    asked = GenerationOptions(eos_token_id=ends)
    assert asked.eos_token_ids in ({5}, {5, 6}) and (5 in asked.eos_token_ids)
    asked.check_ids(10)


def test_a_temperature_at_which_no_score_is_a_number_is_refused(bundled):
    """Divided by it scores were infinite, their softmax NaN, and the text padding."""
    for temperature in (1e-40, 0.0, float("nan")):
        with pytest.raises(InputError, match=r"temperature is .*; allowed is more than 0, and 1e-30 or more"):
            bundled.generate(TEXT, "large", do_sample=True, temperature=temperature)
    (result,) = bundled.generate(TEXT, "large", do_sample=True, temperature=1e-30)
    assert result.token_ids == first(bundled)


def test_a_batch_may_be_as_large_as_one_likes(bundled):
    assert next(bundled.generate_each([TEXT], "large", batch_size=10**20)).token_ids == first(bundled)


@pytest.mark.parametrize("most", [0, 3])
def test_a_least_number_of_new_tokens_stands_above_a_least_length(bundled, most):
    option = {"min_length": 25, "min_new_tokens": most}
    assert first(bundled, **option) == greedy(bundled, TEXT, **option) == first(bundled)
