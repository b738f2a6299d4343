"""A text that begins as the last one did is read from where they part, and comes out the same."""

from __future__ import annotations

import random

import pytest
import torch

from bild import BigLittleDecoder
from bild.engine import Memory
from bild.errors import InputError
from tests.compiled import pair_of
from tests.evaluation.chats import chat_pair
from tests.models.on_states.pairs import states_pair
from tests.networks import build, perturbed


def pairs() -> dict[str, BigLittleDecoder]:
    large = build("llama", seed=1, layers=3, dtype=torch.float64, max_position_embeddings=256)
    small = perturbed(large, 0.15)
    return {
        "small": BigLittleDecoder(large, small),
        "ngram": BigLittleDecoder(large, drafter="ngram:shortest=1"),
        "exit": BigLittleDecoder(large, "exit:1"),
        "middle": BigLittleDecoder(large, small, middle=perturbed(large, 0.05), middle_window=3),
        "several": BigLittleDecoder(large, small, drafter="first:ngram,small"),
        "states": BigLittleDecoder(*states_pair("llama", max_position_embeddings=256)),
    }


PAIRS = pairs()
NEW = {"max_new_tokens": 8, "eos_token_id": 1}


def texts(seed: int, count: int = 8) -> list[list[int]]:
    """Prompts of which most go on from the one before and what was written, some part from it, and one is another."""
    chance, prompt, told = random.Random(seed), [5, 6, 7], []
    for turn in range(count):
        told.append(list(prompt))
        written = chance.choices(range(2, 30), k=4)
        cut = chance.choice([len(prompt), len(prompt), max(1, len(prompt) // 2)])
        prompt = prompt[:cut] + written if turn != 4 else [9, *written]
    return told


def say(pair: BigLittleDecoder, prompt: list[int], policy: str, **options):
    stream = pair.stream(prompt, policy, **NEW, **options)
    for _ in stream:
        pass
    return stream.result


@pytest.mark.parametrize("policy", ["exact", "bild:rollback_threshold=1", "large", "speculative_sampling:window=3"])
@pytest.mark.parametrize("kind", PAIRS)
def test_every_text_is_that_of_a_pair_that_reads_it_anew(kind, policy):
    pair, memory = PAIRS[kind], Memory()
    for prompt in texts(3):
        expected, found = say(pair, prompt, policy), say(pair, prompt, policy, memory=memory)
        assert found.token_ids == expected.token_ids and found.finish_reason == expected.finish_reason


def test_what_was_written_is_the_beginning_of_the_next_prompt_and_not_read_again():
    pair, memory, read = PAIRS["small"], Memory(), {}
    prompt = list(range(5, 25))
    first = say(pair, prompt, "exact", memory=memory)
    longer = [*prompt, *first.token_ids[:-1], 7, 8]
    for name, options in (("anew", {}), ("on", {"memory": memory})):
        stream = pair.stream(longer, "exact", **NEW, **options)
        list(stream)
        read[name] = [sum(commit.work[who].read for commit in stream.rounds) for who in ("large", "small")]
    # Only the two new tokens are read of it.
    assert [one - other for one, other in zip(read["anew"], read["on"], strict=True)] == [len(longer) - 2] * 2


@pytest.mark.compiles
def test_compiled_models_go_on_too():
    pair, memory = pair_of("llama", "qwen2", "static"), Memory()
    for prompt in texts(5):
        expected, found = say(pair, prompt, "exact"), say(pair, prompt, "exact", memory=memory)
        assert found.token_ids == expected.token_ids


def test_models_that_were_used_otherwise_begin_anew():
    pair, memory = PAIRS["small"], Memory()
    prompt = list(range(5, 25))
    for policy in ("exact", "large", "exact", "small", "bild"):
        assert say(pair, prompt, policy, memory=memory).token_ids == say(pair, prompt, policy).token_ids
    for drafter in ("ngram", "small", "first:ngram,small"):
        found = say(pair, prompt, "exact", memory=memory, drafter=drafter)
        assert found.token_ids == say(pair, prompt, "exact").token_ids


def test_a_text_that_is_stopped_is_gone_on_from():
    pair, memory = PAIRS["small"], Memory()
    stream = pair.stream([5, 6, 7], "exact", memory=memory, **NEW)
    stream._written.send(None)
    stream.close()
    assert say(pair, [5, 6, 7, 8], "exact", memory=memory).token_ids == say(pair, [5, 6, 7, 8], "exact").token_ids


def test_encoders_have_none():
    pair = BigLittleDecoder(build("t5"), build("t5", seed=1))
    with pytest.raises(InputError, match="a memory is of decoder-only models"):
        pair.stream([5, 6, 1], memory=Memory())


def test_a_prompt_that_is_the_last_one_again_still_reads_its_last_token():
    pair, memory = chat_pair(), Memory()
    one, other = (say(pair, [2, 7, 8, 3], "exact", memory=memory) for _ in range(2))
    assert one.token_ids == other.token_ids
