"""The bundled pair in an engine: whoever its neighbours are, a text is that of ``generate``."""

from __future__ import annotations

import random

import pytest
import torch

from bild import BigLittleDecoder
from bild.decoding import Rules
from bild.engine import Engine, Failed, Limits, Written
from tests.networks import build, word_tokenizer


def run(engine: Engine, asked: list[tuple], seed: int) -> dict[int, list[int]]:
    """Hand jobs in at random turns; the tokens of each."""
    rng, found, waiting = random.Random(seed), {}, list(asked)
    place = engine.reserve()

    def hear(events):
        for event in events:
            assert not isinstance(event, Failed), event
            if isinstance(event, Written):
                found.setdefault(event.ticket, []).extend(event.commit.tokens)

    while engine.step() or waiting:
        if waiting and rng.random() < 0.5:
            job, rules = waiting.pop(0)
            engine.submit([job], rules, hear, place)
    engine.release(place)
    return found


def test_texts_of_the_bundled_pair_are_those_of_generate(bundled, sentences):
    texts, policies = sentences[14:26], ["bild", "exact", "large", "small"]
    asked = [(text, policies[at % 4]) for at, text in enumerate(texts)]
    expected = [bundled.generate(text, policy)[0].token_ids for text, policy in asked]
    jobs = [(bundled.jobs(text)[0], Rules(bundled.resolve_policy(policy))) for text, policy in asked]
    found = run(bundled.engine(Limits(rows=4)), jobs, 1)
    assert [found[id] for id in sorted(found)] == expected


@pytest.mark.parametrize("pair", ["exit", "ngram", "none"])
def test_pairs_without_a_small_model_of_their_own(pair):
    large = build("t5", seed=5, dtype=torch.float64)
    drafter = "small" if pair == "exit" else "ngram"
    decoder = BigLittleDecoder(large, "exit:1" if pair == "exit" else None, word_tokenizer(), drafter=drafter)
    texts = ["w7 w8 w9", "w3", "w20 w21 w22 w23 w5 w6", "w11 w12"]
    policy = "large" if pair == "none" else "exact"
    expected = [result.token_ids for result in decoder.generate(texts, policy, max_new_tokens=14)]
    rules = Rules(decoder.resolve_policy(policy))
    found = run(decoder.engine(Limits(rows=3)), [(job, rules) for job in decoder.jobs(texts, max_new_tokens=14)], 2)
    assert [found[id] for id in sorted(found)] == expected
