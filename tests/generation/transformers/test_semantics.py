"""What plain greedy generate() of the large model writes, the exact policy writes through the door."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MaxTimeCriteria, WatermarkingConfig

import bild
from bild import BigLittleDecoder, Policy, Stats
from tests.compiled import network_of, pair_of
from tests.generation.transformers.doors import (
    ENCODES,
    EXACT,
    LENGTH,
    Avoid,
    Long,
    every_architecture,
    facts,
    inputs_of,
    large_of,
    new_tokens,
    plain,
    small_of,
    through,
    tokenizer_of,
)
from tests.networks import EOS, PAD, VOCAB_SIZE, build, word_tokenizer


@every_architecture
@pytest.mark.parametrize("rows", [1, 3])
def test_exact_is_plain_greedy(name, rows):
    inputs = inputs_of(name, rows)
    expected = plain(name, inputs)
    output = through(name, inputs, return_dict_in_generate=True)
    assert torch.equal(output.sequences, expected) and output.sequences.dtype == expected.dtype
    total = Stats.total(result.stats for result in output.bild_results)
    assert total.num_rollbacks > 0 and 0 < total.num_accepted_tokens < total.num_draft_tokens


BEAMS: list[dict[str, Any]] = [
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 2},
    {"num_beams": 2, "prefix_allowed_tokens_fn": lambda row, _: list(range(row, VOCAB_SIZE, 2)) or [EOS]},
    {"num_beams": 2, "repetition_penalty": 2.0, "early_stopping": "never"},
]


@every_architecture
@pytest.mark.parametrize("options", BEAMS)
@pytest.mark.parametrize("policy", [EXACT, "large"])
def test_a_beam_search_is_plain_beam_search(name, options, policy):
    inputs = inputs_of(name)
    expected = plain(name, inputs, **options)
    output = through(name, inputs, policy, return_dict_in_generate=True, **options)
    # transformers fills up with an end token where the padding token is 0.
    found = output.sequences.clone()
    found[:, -LENGTH + 1 :][(found[:, -LENGTH:-1] == EOS).cumsum(1) > 0] = EOS
    assert torch.equal(found, expected)
    assert [len(result.hypotheses) for result in output.bild_results] == [options["num_beams"]] * 3


@every_architecture
@pytest.mark.parametrize("policy", [EXACT, "large"])
def test_a_drawn_beam_search_is_that_of_the_decoder(name, policy):
    drawn: dict[str, Any] = {"do_sample": True, "num_beams": 3, "temperature": 1.5}
    # Making a network takes random numbers, too.
    through(name, policy=policy)
    torch.manual_seed(4)
    seeds = [int(torch.randint(2**62, ())) for _ in range(3)]
    torch.manual_seed(4)
    output = through(name, policy=policy, return_dict_in_generate=True, num_return_sequences=2, **drawn)
    decoder = BigLittleDecoder(large_of(name), small_of(name))
    results = decoder.generate(dict(inputs_of(name)), policy, max_new_tokens=LENGTH, seed=seeds, **drawn)
    texts = [list(each.tokens) for result in results for each in result.hypotheses[:2]]
    found = output.sequences[:, -LENGTH:].tolist()
    assert [row[: len(text)] for row, text in zip(found, texts, strict=True)] == texts
    searched = decoder.generate(dict(inputs_of(name)), "large", max_new_tokens=LENGTH, num_beams=3)
    assert texts != [list(each.tokens) for result in searched for each in result.hypotheses[:2]]


@pytest.mark.parametrize(
    "policy", ["bild", "small", "large", Policy.bild(fallback_threshold=0.3, rollback_threshold=1)]
)
@every_architecture
def test_every_policy_is_that_of_the_decoder(name, policy):
    decoder = BigLittleDecoder(large_of(name), small_of(name))
    results = decoder.generate(dict(inputs_of(name)), policy, max_new_tokens=LENGTH, batch_size=3)
    output = through(name, policy=policy, return_dict_in_generate=True)
    assert facts(output.bild_results) == facts(results)


CASES: dict[str, Callable[[list[int], list[int]], dict[str, Any]]] = {
    "min_new_tokens": lambda first, second: {"min_new_tokens": 9} | {"eos_token_id": [EOS, second[2]]},
    "min_length": lambda first, second: {"min_length": 12} | {"eos_token_id": [EOS, second[2]]},
    "repetition_penalty": lambda first, second: {"repetition_penalty": 4.0},
    "no_repeat_ngram_size": lambda first, second: {"no_repeat_ngram_size": 1},
    "several ends": lambda first, second: {"eos_token_id": [EOS, first[3], second[4]]},
    "max_length": lambda first, second: {"max_length": 9, "max_new_tokens": None},
    "bad_words_ids": lambda first, second: {"bad_words_ids": [[first[1]], second[2:4]]},
    "suppress_tokens": lambda first, second: {"suppress_tokens": [first[2]]},
    "begin_suppress_tokens": lambda first, second: {"begin_suppress_tokens": [first[0], second[0]]},
    "sequence_bias": lambda first, second: {"sequence_bias": [[[first[1]], -20.0], [[second[1], 5], 9.0]]},
    "forced_eos_token_id": lambda first, second: {"forced_eos_token_id": 7, "max_new_tokens": 5},
    "exponential_decay_length_penalty": lambda first, second: {"exponential_decay_length_penalty": (2, 3.0)},
    "watermarking_config": lambda first, second: {"watermarking_config": WatermarkingConfig(bias=8.0)},
    "encoder_no_repeat_ngram_size": lambda first, second: {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": lambda first, second: {"encoder_repetition_penalty": 50.0},
    "prefix_allowed_tokens_fn": lambda first, second: {
        "prefix_allowed_tokens_fn": lambda row, ids: [2 + row, 9 + int(ids[-1]) % 20]
    },
}
"""Options that change the texts, which the first two rows' new tokens say how to do."""


@every_architecture
@pytest.mark.parametrize("case", CASES)
def test_options_mean_what_they_mean_in_transformers(name, case):
    options = CASES[case](new_tokens(name), new_tokens(name, 1))
    expected = plain(name, **options)
    assert expected.tolist() != plain(name).tolist()
    assert through(name, **options).tolist() == expected.tolist()


@every_architecture
def test_a_forced_first_token(name):
    """It counts from a decoder of one token, which a decoder-only model has for a prompt of one token."""
    inputs = {"input_ids": torch.tensor([[5], [9]])}
    option = {"forced_bos_token_id": 17}
    expected = plain(name, inputs, **option)
    assert expected[:, 1].tolist() == [17, 17] != plain(name, inputs)[:, 1].tolist()
    assert torch.equal(through(name, inputs, **option), expected)


@every_architecture
def test_stop_strings(name):
    tokenizer = tokenizer_of()
    words = [f"w{new_tokens(name, row)[3 + row]}" for row in (0, 1)]
    expected = plain(name, stop_strings=words, tokenizer=tokenizer)
    assert expected.tolist() != plain(name).tolist()
    output = through(name, stop_strings=words, tokenizer=tokenizer, return_dict_in_generate=True)
    assert torch.equal(output.sequences, expected)
    assert output.bild_results[1].finish_reason == "stop" and output.bild_results[1].text.endswith(tuple(words))
    one = words[0]
    expected = plain(name, stop_strings=one, tokenizer=tokenizer)
    assert torch.equal(through(name, stop_strings=one, tokenizer=tokenizer), expected)


@every_architecture
def test_processors_and_criteria_of_ones_own(name):
    options = {"logits_processor": [Avoid()], "stopping_criteria": [Long()]}
    expected = plain(name, **options)
    assert expected.tolist() not in (plain(name).tolist(), plain(name, logits_processor=[Avoid()]).tolist())
    assert through(name, **options).tolist() == expected.tolist()


def test_a_time_limit_ends_every_text():
    output = through("llama", stopping_criteria=[MaxTimeCriteria(0.0)], max_new_tokens=50, return_dict_in_generate=True)
    assert {result.finish_reason for result in output.bild_results} == {"stop"}
    assert max(len(result.token_ids) for result in output.bild_results) == 1


def test_positions_end_a_text():
    output = through("gpt2", max_new_tokens=500, eos_token_id=None, pad_token_id=PAD, return_dict_in_generate=True)
    lengths = [len(result.token_ids) for result in output.bild_results]
    assert lengths == [64 - 3, 64 - 5, 64 - 4]


def test_no_mask_and_a_decoder_prompt():
    for name in ENCODES:
        inputs = {"input_ids": inputs_of(name)["input_ids"]} | {"decoder_input_ids": torch.tensor([[0, 4, 9]] * 3)}
        assert torch.equal(through(name, inputs), plain(name, inputs))
    inputs = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}
    assert torch.equal(through("llama", inputs), plain("llama", inputs))


def test_processors_apply_to_drafts():
    banned = new_tokens("llama")[1]

    def drafted(**options: Any) -> set[int]:
        output = through("llama", return_dict_in_generate=True, **options)
        return {token for result in output.bild_results for commit in result.rounds for token in commit.draft}

    assert banned in drafted() and banned not in drafted(bad_words_ids=[[banned]])


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_an_early_exit(name):
    output = through(name, small="exit:1", return_dict_in_generate=True)
    assert torch.equal(output.sequences, plain(name))
    decoder = large_of(name)._bild_pair.decoder
    assert decoder.early_exit == "exit:1"
    total = Stats.total(result.stats for result in output.bild_results)
    assert total.num_rollbacks > 0 and total.num_draft_tokens > 0


@pytest.mark.parametrize(("large", "small"), [("llama", "gpt2"), ("t5", "bart")])
@pytest.mark.compiles
def test_the_static_runtime(large, small):
    compiled = pair_of(large, small, "static")
    network, ids = network_of(large), torch.tensor([[3, 9, 8, 4, 2], [5, 6, 7, 8, 9]])
    expected = network.generate(ids, max_new_tokens=LENGTH, use_cache=False)
    door = bild.custom_generate(compiled.small, EXACT, runtime="static")
    assert torch.equal(network.generate(ids, max_new_tokens=LENGTH, custom_generate=door), expected)
    assert network._bild_pair.decoder.large.is_compiled


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_heads_of_different_size(name):
    sizes = {"num_decoder_layers": 2} if name == "t5" else {}
    large = build(name, seed=1, dtype=torch.float32, vocab_size=VOCAB_SIZE + 24, **sizes)
    inputs, beyond = inputs_of(name), list(range(VOCAB_SIZE, VOCAB_SIZE + 24))
    expected = large.generate(**inputs, max_new_tokens=LENGTH, suppress_tokens=beyond)
    door = bild.custom_generate(small_of(name), EXACT, tokenizer=word_tokenizer())
    assert torch.equal(large.generate(**inputs, max_new_tokens=LENGTH, custom_generate=door), expected)
