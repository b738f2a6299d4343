"""Stop strings are found when their last token comes, in every kind of tokenizer, without reading the whole text."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bild import BigLittleDecoder, InputError
from bild.generation.stop_strings import StopStrings
from bild.generation.text import decode
from tests.generation import tokenizers


def first_stop(tokenizer, ids: list[int], strings: list[str], prompt: int = 0) -> int | None:
    """How many tokens a row has when it stops, asked as the loop does."""
    stops = StopStrings(strings, tokenizer, prompt)
    return next((n for n in range(prompt + 1, len(ids) + 1) if stops(ids[:n])), None)


def by_definition(tokenizer, ids: list[int], strings: list[str]) -> int | None:
    """The same from the whole text, with special tokens and without."""
    for n in range(1, len(ids) + 1):
        shown = decode(tokenizer, ids[:n]), tokenizer.decode(ids[:n])
        if any(string in text for string in strings for text in shown):
            return n
    return None


@pytest.mark.parametrize("string", ["。", "です。", "é", "🙂", "x", "!", "b é"])
def test_a_stop_string_may_end_inside_a_character_of_several_tokens(string):
    tokenizer = tokenizers.bytewise()
    before = tokenizer("ab 日本").input_ids
    ids = before + tokenizer(string).input_ids
    assert first_stop(tokenizer, [*ids, *before], [string, "never"]) == len(ids)


@pytest.mark.parametrize("name", tokenizers.KINDS)
def test_as_by_definition(name):
    tokenizer, draw = tokenizers.KINDS[name](), random.Random(5)
    found = 0
    for _ in range(120):
        pool = [draw.randrange(len(tokenizer)) for _ in range(draw.choice([3, 8, 300]))]
        ids = [draw.choice(pool) for _ in range(60)]
        end = draw.randrange(2, 60)
        text = tokenizer.decode(ids[:end], skip_special_tokens=draw.random() < 0.5).rstrip("\ufffd")
        string = text[-draw.randrange(1, 14) :]
        if string:
            wanted = by_definition(tokenizer, ids, [string])
            assert first_stop(tokenizer, ids, [string]) == wanted, (ids, string)
            found += wanted is not None and wanted > 12
    assert found > 15


def test_a_bytewise_run_may_be_longer_than_a_window():
    tokenizer = tokenizers.byte_fallback()
    ids = [1 + byte for byte in ("日本語" * 20 + "。" + "日").encode()]
    assert first_stop(tokenizer, ids, ["。"]) == len(ids) - 3


def test_the_prompt_is_not_searched_and_may_have_any_length():
    tokenizer = tokenizers.bytewise()
    prompt = tokenizer("stop st").input_ids
    ids = prompt + tokenizer("op stop").input_ids
    assert first_stop(tokenizer, ids, ["stop"], len(prompt)) == len(ids)


def test_drafts_that_are_rolled_back_leave_nothing_behind():
    tokenizer = tokenizers.bytewise()
    stops = StopStrings(["stop"], tokenizer, 0)
    kept, lost = tokenizer("a st").input_ids, tokenizer("op").input_ids
    assert stops(kept + lost) and not stops(kept) and not stops(kept + tokenizer("ab").input_ids)
    assert stops(kept + lost)


@pytest.mark.parametrize(
    "strings", [["@@never@@", "###"], ["。。。"], ["a long stop string of fifty letters, or even more"]]
)
def test_a_token_costs_the_same_however_long_the_text(strings):
    tokenizer = tokenizers.bytewise()
    decode_all, read = tokenizer.decode, []
    tokenizer.decode = lambda ids, **options: (read.append(len(ids)), decode_all(ids, **options))[1]
    ids, stops = tokenizer("abc 日本 ").input_ids * 400, StopStrings(strings, tokenizer, 0)
    costs = []
    for length in (400, 4000):
        read.clear()
        assert not stops(ids[:length])
        costs.append(sum(read))
    assert costs[0] == costs[1] < 250


def test_a_special_token_is_found_by_its_name():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        eos_token_id=None,
    )
    network = LlamaForCausalLM(config).eval()
    written = BigLittleDecoder(network, network).generate([[3, 4]], "exact", max_new_tokens=12)[0].token_ids
    names = {("<|im_end|>" if id == written[2] else f"w{id}"): id for id in range(16)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(names)), additional_special_tokens=["<|im_end|>"]
    )
    decoder = BigLittleDecoder(network, network, tokenizer)
    (result,) = decoder.generate([[3, 4]], "exact", max_new_tokens=12, stop_strings="<|im_end|>")
    assert result.finish_reason == "stop" and result.token_ids == written[: written.index(written[2]) + 1]


def test_a_pair_without_a_tokenizer():
    with pytest.raises(InputError, match="stop_strings need a tokenizer"):
        StopStrings(["x"], None, 0)
