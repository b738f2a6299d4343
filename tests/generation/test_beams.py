"""Beam search through the decoder: transformers' own texts, by either model alone and with drafted layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch

from bild import BigLittleDecoder, InputError, Policy, Result
from bild.decoding import Stats
from bild.decoding.beams.noise import Noise
from tests.networks import ARCHITECTURES, EOS, PAD, build, perturbed, random_tokens

LENGTH = 16


def pair(name: str, **options: Any) -> BigLittleDecoder:
    large = build(name, seed=1)
    return BigLittleDecoder(large, perturbed(large, 0.25), **options)


def inputs_of(count: int) -> list[list[int]]:
    rng = Random(0)
    return [random_tokens(rng, rng.randint(1, 9)) for _ in range(count)]


def by_transformers(network: Any, ids: list[int], **options: Any) -> tuple[list[list[int]], list[float]]:
    found = network.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        num_return_sequences=options["num_beams"],
        max_new_tokens=LENGTH,
        output_scores=True,
        return_dict_in_generate=True,
        use_cache=False,
        **{"do_sample": False, **options},
    )
    start = 1 if network.config.is_encoder_decoder else len(ids)
    return found.sequences[:, start:].tolist(), found.sequences_scores.tolist()


def filled(tokens: Sequence[int], like: list[int]) -> list[int]:
    """With what transformers fills short texts up with."""
    return [*tokens, *(token for token in like[len(tokens) :] if token in (PAD, EOS))]


def facts(result: Result) -> tuple:
    return result.token_ids, result.writers, [(each.tokens, each.finish_reason) for each in result.hypotheses]


OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 2, "length_penalty": -1.0, "early_stopping": "never"},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 4},
]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("options", OPTIONS)
def test_texts_and_scores_are_those_of_transformers(name, options):
    decoder = pair(name)
    for ids in inputs_of(4):
        expected, scores = by_transformers(decoder.large.network, ids, **options)
        for policy in ("large", Policy.exact(fallback_threshold=0.2, max_draft_tokens=3)):
            (result,) = decoder.generate([ids], policy, max_new_tokens=LENGTH, **options)
            texts = [each.tokens for each in result.hypotheses]
            assert [filled(*each) for each in zip(texts, expected, strict=True)] == expected
            assert [each.score for each in result.hypotheses] == pytest.approx(scores, rel=1e-4)
            assert tuple(result.token_ids) == texts[0]


DRAWN: list[dict[str, Any]] = [
    {"num_beams": 3},
    {"num_beams": 2, "temperature": 0.7, "top_k": 6, "length_penalty": 0.5, "early_stopping": True},
    # Both would leave a single token, which a search does not: two stay.
    {"num_beams": 2, "top_p": 0.001},
    {"num_beams": 3, "min_p": 1.0, "repetition_penalty": 1.3, "early_stopping": "never"},
]


def draw_as_we_do(network: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers draw with our noise in place of ``torch.multinomial``."""
    noise, chosen = Noise(torch.Generator().manual_seed(seed)), type(network)._get_top_k_continuations

    def continuations(self: Any, **given: Any) -> Any:
        scores, texts, length = given["accumulated_log_probs"], given["running_sequences"][0], given["cur_len"]
        size = scores.shape[-1] // len(texts)
        gumbel = noise.after(texts[:, :length].tolist(), size).flatten()

        def multinomial(p: torch.Tensor, num_samples: int) -> torch.Tensor:
            drawn = (p.log() + gumbel).topk(num_samples).indices
            # The best first, as later versions put them themselves.
            return drawn.gather(1, p.gather(1, drawn).argsort(descending=True))

        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", multinomial)
            return chosen(self, **given)

    monkeypatch.setattr(type(network), "_get_top_k_continuations", continuations)


@pytest.mark.parametrize("name", ["t5", "bart", "llama"])
@pytest.mark.parametrize("options", DRAWN)
def test_draws_are_those_of_transformers_with_the_same_noise(name, options, monkeypatch):
    decoder, seed = pair(name), 5
    draw_as_we_do(decoder.large.network, seed, monkeypatch)
    for ids in inputs_of(4):
        expected, scores = by_transformers(decoder.large.network, ids, do_sample=True, **options)
        for policy in ("large", Policy.exact(fallback_threshold=0.2, max_draft_tokens=3)):
            drawn: dict[str, Any] = options | {"do_sample": True, "seed": seed, "max_new_tokens": LENGTH}
            (result,) = decoder.generate([ids], policy, **drawn)
            texts = [each.tokens for each in result.hypotheses]
            assert [filled(*each) for each in zip(texts, expected, strict=True)] == expected
            assert [each.score for each in result.hypotheses] == pytest.approx(scores, rel=1e-4)


@pytest.mark.parametrize("policy", ["large", "exact", "small"])
def test_drawn_texts_of_a_batch_are_those_of_their_seeds(policy):
    decoder, inputs = pair("llama"), inputs_of(5)
    options: dict[str, Any] = {"num_beams": 3, "do_sample": True, "max_new_tokens": LENGTH}
    together = decoder.generate(inputs, policy, batch_size=3, lanes=2, seed=list(range(5)), **options)
    alone = [decoder.generate([ids], policy, seed=seed, **options)[0] for seed, ids in enumerate(inputs)]
    assert [facts(result) for result in together] == [facts(result) for result in alone]
    stream = decoder.stream(inputs[1], policy, seed=1, **options)
    assert "".join(stream) == alone[1].text
    same = decoder.generate(inputs[:1] * 5, policy, seed=list(range(5)), **options)
    assert facts(same[0]) == facts(alone[0]) and len({tuple(result.token_ids) for result in same}) > 1


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_the_small_model_alone_searches_too(name):
    decoder = pair(name)
    for ids in inputs_of(3):
        expected, _ = by_transformers(decoder.small.network, ids, num_beams=3)
        (result,) = decoder.generate([ids], "small", num_beams=3, max_new_tokens=LENGTH)
        assert filled(result.token_ids, expected[0]) == expected[0] and set(result.writers) == {"small"}
        assert result.stats.num_large_steps == 0 < result.stats.num_small_steps


@pytest.mark.parametrize("name", ["t5", "marian", "llama"])
@pytest.mark.parametrize("policy", ["large", "exact"])
def test_batches_lanes_and_streams_give_the_same_texts(name, policy):
    decoder, inputs = pair(name), inputs_of(7)
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": LENGTH}
    alone = [decoder.generate([ids], policy, **options)[0] for ids in inputs]
    for together in (
        decoder.generate(inputs, policy, batch_size=3, **options),
        decoder.generate(inputs, policy, batch_size=2, lanes=2, **options),
    ):
        assert [facts(r) for r in together] == [facts(r) for r in alone]
    for ids, result in zip(inputs, alone, strict=True):
        stream = decoder.stream(ids, policy, **options)
        assert "".join(stream) == result.text and stream.result.token_ids == result.token_ids


def test_layers_are_drafted_and_counted():
    decoder = pair("t5")
    inputs = inputs_of(8)
    plain = Stats.total(r.stats for r in decoder.generate(inputs, num_beams=3, max_new_tokens=LENGTH))
    drafted = Stats.total(r.stats for r in decoder.generate(inputs, "exact", num_beams=3, max_new_tokens=LENGTH))
    assert plain.num_small_steps == plain.num_rounds == 0
    assert 0 < drafted.num_accepted_tokens < drafted.num_draft_tokens
    assert drafted.num_large_steps < plain.num_large_steps
    assert drafted.num_large_steps == drafted.num_rounds and drafted.num_rollbacks > 0


def test_an_early_exit_drafts_layers():
    large = build("llama", seed=3, layers=4)
    decoder = BigLittleDecoder(large, "exit:3")
    for ids in inputs_of(4):
        expected, _ = by_transformers(large, ids, num_beams=3)
        (result,) = decoder.generate([ids], "exact", num_beams=3, max_new_tokens=LENGTH)
        assert filled(result.token_ids, expected[0]) == expected[0] and result.stats.num_small_steps > 0


def test_a_checkpoint_says_how_its_searches_end_but_not_that_there_is_one(caplog):
    decoder = pair("t5")
    decoder.generation_config.update(num_beams=5, length_penalty=3.0, early_stopping=True)
    with caplog.at_level(logging.WARNING, "bild"):
        (ids,) = inputs_of(1)
        (searched,) = decoder.generate([ids], num_beams=2, max_new_tokens=LENGTH)
        assert not caplog.text
        (greedy,) = decoder.generate([ids], "large", max_new_tokens=LENGTH)
    assert "asks for num_beams=5; texts are greedy unless a call asks for it" in caplog.text
    assert not greedy.hypotheses
    asked = {"num_beams": 2, "length_penalty": 3.0, "early_stopping": True}
    assert searched.hypotheses == decoder.generate([ids], max_new_tokens=LENGTH, **asked)[0].hypotheses


def test_one_beam_is_no_search():
    (ids,) = inputs_of(1)
    decoder = pair("llama")
    assert decoder.generate([ids], num_beams=1, max_new_tokens=4)[0].hypotheses == ()


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (None, {"num_beams": 0}, "num_beams is 0; allowed is 1"),
        (None, {"num_beams": 2.5}, "num_beams is 2.5; allowed is 1"),
        (None, {"num_beams": 2, "length_penalty": float("nan")}, "length_penalty is nan; allowed is a finite number"),
        (
            None,
            {"num_beams": 2, "length_penalty": 400.0},
            "length_penalty is 400.0; allowed is a finite number, -50 to 50",
        ),
        (None, {"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'; allowed is True, False"),
        (None, {"length_penalty": 2.0}, "length_penalty shapes a beam search, and this call has none"),
        (None, {"num_beams": 1, "early_stopping": True}, "early_stopping shapes a beam search"),
        (None, {"num_beams": 2, "logprobs": 1}, "num_beams is 2, and a beam search has no logprobs"),
        ("bild", {"num_beams": 2}, "a beam search is of one model: take policy 'large', 'small', or 'exact'"),
        ("exact", {"num_beams": 2, "drafter": "ngram"}, "drafted by the small model and no other; take policy 'large'"),
    ],
)
def test_what_is_no_search_is_refused_in_a_line(policy, options, message):
    with pytest.raises(InputError, match=message) as raised:
        pair("llama").generate([[3, 4]], policy, **options)
    assert "\n" not in str(raised.value)


def test_a_memory_is_of_one_text():
    from bild.engine import Memory

    with pytest.raises(InputError, match="a beam search has no memory"):
        list(pair("llama").stream([3, 4], memory=Memory(), num_beams=2))


def test_end_tokens_are_part_of_what_is_finished():
    decoder = pair("t5")
    results = decoder.generate(inputs_of(8), num_beams=3, max_new_tokens=LENGTH)
    ended = [each for result in results for each in result.hypotheses if each.finish_reason == "eos"]
    assert ended and all(each.tokens[-1] == EOS for each in ended)


def test_the_bundled_pair_finds_what_transformers_finds(bundled, sentences):
    for text in sentences[20:26]:
        inputs = bundled.tokenizer(text, return_tensors="pt")
        expected = bundled.large.network.generate(**inputs, do_sample=False, num_beams=4, max_new_tokens=40)[0, 1:]
        for policy in ("large", "exact"):
            (result,) = bundled.generate(text, policy, num_beams=4, max_new_tokens=40)
            assert result.token_ids == expected[: len(result.token_ids)].tolist()
            assert result.text == bundled.tokenizer.decode(expected, skip_special_tokens=True)


def test_more_beams_than_there_are_texts():
    decoder, ids = pair("gpt2"), inputs_of(1)[0]
    asked = [decoder.generate([ids], "large", max_new_tokens=1, num_beams=beams)[0] for beams in (1000, 10**30)]
    assert facts(asked[0]) == facts(asked[1])
