"""The main job on the bundled pair: exact is the large model's greedy text, batches and streams agree."""

from __future__ import annotations

import json

import pytest
import torch

from bild import BigLittleDecoder, InputError, LoadError, Policy, Stats, VocabularyError
from bild.models import EagerScorer
from tests.networks import build


def greedy(decoder: BigLittleDecoder, text: str, **options) -> list[int]:
    """transformers' own greedy text of the large model, without the decoder start."""
    inputs = decoder.tokenizer(text, return_tensors="pt")
    return decoder.large.network.generate(**inputs, do_sample=False, num_beams=1, **options)[0, 1:].tolist()


def test_exact_and_large_are_transformers_greedy(bundled, sentences):
    texts = sentences[::2]
    exact = bundled.generate(texts, policy="exact")
    assert [r.token_ids for r in exact] == [greedy(bundled, text) for text in texts]
    assert [r.token_ids for r in bundled.generate(texts[:10], "large")] == [r.token_ids for r in exact[:10]]
    total = Stats.total(r.stats for r in exact)
    assert total.num_rollbacks > 5 and total.acceptance_rate > 0.5 and total.large_share < 0.8


def test_small_alone_is_the_small_models_greedy_text(bundled, sentences):
    inputs = bundled.tokenizer(sentences[22], return_tensors="pt")
    expected = bundled.small.network.generate(**inputs, do_sample=False)[0, 1:].tolist()
    (result,) = bundled.generate(sentences[22], "small")
    assert result.token_ids == expected and set(result.writers) == {"small"}
    assert (result.stats.num_large_steps, result.stats.num_small_steps) == (0, len(expected))


@pytest.mark.parametrize("policy", ["bild", "exact", "large", "small"])
def test_batch_16_equals_batch_1(bundled, sentences, policy):
    texts = sentences[:20]
    alone = bundled.generate(texts, policy)
    together = bundled.generate(texts, policy, batch_size=16)
    assert [(r.token_ids, r.writers, r.stats) for r in alone] == [(r.token_ids, r.writers, r.stats) for r in together]


def test_a_result_adds_up(bundled, sentences):
    for result in bundled.generate(sentences[22:28], Policy.bild(fallback_threshold=0.4)):
        stats = result.stats
        assert len(result.writers) == len(result.token_ids) == stats.num_tokens
        assert result.writers.count("large") == stats.num_large_tokens == stats.num_large_steps
        assert result.writers.count("small") == stats.num_accepted_tokens
        assert result.finish_reason == "eos" and result.token_ids[-1] == bundled.tokenizer.eos_token_id
        assert 0 < result.ttft_s <= result.total_s
        assert result.seconds_per_token * stats.num_tokens == pytest.approx(result.total_s)
        tokens = result.tokens(bundled.tokenizer)
        assert "".join(t["text"] for t in tokens[:-1]) == result.text and tokens[-1]["text"] == "</s>"
        json.dumps(result.stats_dict(), allow_nan=False)


@pytest.mark.parametrize("policy", ["bild", "exact", "small"])
def test_a_stream_is_the_text_in_pieces(bundled, sentences, policy):
    for text in sentences[20:26]:
        stream = bundled.stream(text, policy)
        pieces = list(stream)
        (result,) = bundled.generate(text, policy)
        assert "".join(pieces) == result.text == stream.result.text
        assert stream.result.token_ids == result.token_ids
    assert len(list(bundled.stream(sentences[38], "large"))) > 20


def test_tensors_and_token_ids_and_texts_are_the_same_input(bundled, sentences):
    encoded = bundled.tokenizer(sentences[:3], return_tensors="pt", padding=True)
    by_text = [r.token_ids for r in bundled.generate(sentences[:3])]
    assert [r.token_ids for r in bundled.generate(encoded)] == by_text
    masked = bundled.generate(encoded.input_ids, attention_mask=encoded.attention_mask)
    assert [r.token_ids for r in masked] == by_text
    assert bundled.generate(bundled.tokenizer(sentences[0]).input_ids)[0].token_ids == by_text[0]
    assert bundled.generate([]) == []


def test_length_limit(bundled, sentences):
    for policy in ("bild", "exact", "large", "small"):
        (result,) = bundled.generate(sentences[22], policy, max_new_tokens=3)
        assert len(result.token_ids) == 3 and result.finish_reason == "length"


def test_prefix_and_task(bundled):
    plain, prefixed = bundled.generate("kommt.")[0], bundled.generate("kommt.", prefix="Der Zug ")[0]
    assert prefixed.token_ids == bundled.generate("Der Zug kommt.")[0].token_ids != plain.token_ids
    bundled.large.config.task_specific_params = {"hunger": {"prefix": "Der Zug "}}
    try:
        assert bundled.generate("kommt.", task="hunger")[0].token_ids == prefixed.token_ids
        with pytest.raises(InputError, match="task is 'thirst'; this checkpoint names hunger"):
            bundled.generate("Hunger.", task="thirst")
    finally:
        del bundled.large.config.task_specific_params


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (["  \t"], {}, "the text is empty"),
        ([["ok", ""]], {}, "the text is empty"),
        ([[[1, 9000]]], {}, "token id 9000 is outside the vocabulary; allowed is 0 to 7999"),
        ([[[]]], {}, "no tokens"),
        ([7], {}, "cannot decode an int"),
        (["x", "fast"], {}, "policy is 'fast'; allowed are bild, exact, speculative_sampling, "),
        (["x"], {"batch_size": 0}, "batch_size is 0"),
        (["x"], {"batch_size": 1.5}, "batch_size is 1.5; allowed is 1 or more, a whole number"),
        (["x"], {"batch_size": "2"}, "batch_size is '2'; allowed is 1 or more"),
        (["x", 5], {}, "policy is 5; give a Policy or the name of a preset"),
        ([[[True, False]]], {}, "cannot decode a bool among token ids"),
        (["x"], {"max_new_token": 5}, "unknown option 'max_new_token'; did you mean max_new_tokens"),
        (["x"], {"max_new_tokens": 0}, "max_new_tokens is 0; allowed is 1 or more"),
        (["x"], {"do_sample": True, "temperature": 0}, "temperature is 0; allowed is more than 0"),
        (["x"], {"top_p": 1.5}, "top_p is 1.5"),
        (["x"], {"lossless": True}, "does not give the large model's own text"),
        (["x"], {"chat": True}, "no chat template"),
        ([["a", "b"]], {"do_sample": True, "seed": [1]}, "1 seeds for more inputs"),
        ([["a", "b"]], {"do_sample": True, "seed": [1, 2, 3]}, "3 seeds for 2 texts"),
        (["x"], {"do_sample": "no"}, "do_sample is 'no'; allowed are True and False"),
        (["x"], {"bad_words_ids": [3]}, r"bad_words_ids is \[3\]; allowed are lists of token ids"),
        (["x"], {"bad_words_ids": 3}, "bad_words_ids is 3; allowed are lists"),
        (["x"], {"bad_words_ids": [[]]}, r"bad_words_ids is \[\[\]\]; allowed are lists"),
    ],
)
def test_bad_input_is_one_line(bundled, arguments, options, says):
    with pytest.raises(InputError, match=says) as raised:
        bundled.generate(*arguments, **options)
    assert "\n" not in str(raised.value)


def test_lossless_is_granted_to_lossless_policies(bundled):
    (result,) = bundled.generate("Ich habe Hunger.", "exact", lossless=True)
    assert result.token_ids == greedy(bundled, "Ich habe Hunger.")


def test_a_stream_that_is_left_decodes_no_further(bundled, sentences, monkeypatch):
    read = []
    # Plain and summarised scores both come from here.
    extend = EagerScorer._extend
    monkeypatch.setattr(EagerScorer, "_extend", lambda *arguments: read.append(1) or extend(*arguments))
    with bundled.stream(sentences[38], "large") as stream:
        first = [next(stream), next(stream)]
        done = len(read)
    assert first and list(stream) == [] and stream.result is None and len(read) == done >= 2


def test_stream_takes_one_input(bundled):
    with pytest.raises(InputError, match="stream takes one input, got 2"):
        bundled.stream(["a", "b"])


def test_positions_are_a_limit():
    large, small = build("gpt2", seed=1, dtype=torch.float32), build("gpt2", seed=2, dtype=torch.float32)
    decoder = BigLittleDecoder(large, small)
    limit = decoder.large.max_positions
    with pytest.raises(
        InputError, match=f"the text has {limit + 1} prompt tokens and one to come; the models place at most {limit}"
    ):
        decoder.generate([[5] * limit])
    (result,) = decoder.generate([[5] * (limit - 3)], "exact", max_new_tokens=50, eos_token_id=[])
    assert len(result.token_ids) == 3 and result.finish_reason == "length"


def test_a_runtime_must_exist():
    with pytest.raises(InputError, match="runtime is 'warp'; allowed are auto, eager, static"):
        BigLittleDecoder.from_pretrained(runtime="warp")


def test_both_checkpoints_must_be_named():
    with pytest.raises(InputError, match="small is missing"):
        BigLittleDecoder.from_pretrained(large="somewhere")


def test_text_needs_a_tokenizer():
    decoder = BigLittleDecoder(build("gpt2", seed=1), build("gpt2", seed=2))
    with pytest.raises(InputError, match="no tokenizer; give token ids"):
        decoder.generate("Hallo")


def test_a_pair_survives_saving(bundled, sentences, tmp_path):
    policy = Policy.bild(fallback_threshold=0.33, rollback_threshold=1.5)
    bundled.policy, before = policy, bundled.policy
    try:
        bundled.save_pretrained(tmp_path / "pair")
        expected = [r.token_ids for r in bundled.generate(sentences[:5])]
    finally:
        bundled.policy = before
    for place in (tmp_path / "pair", tmp_path / "pair" / "bild.json"):
        loaded = BigLittleDecoder.from_pretrained(place, dtype="float32")
        assert loaded.policy == policy
        assert [r.token_ids for r in loaded.generate(sentences[:5])] == expected


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_rows_of_models_that_count_positions_share_a_batch(name):
    decoder = BigLittleDecoder(build(name, seed=1), build(name, seed=2))
    assert decoder.batches
    inputs = [[5, 6, 7], [8, 9], [4], [7, 7, 3, 2]]
    together = decoder.generate(inputs, "exact", batch_size=3, max_new_tokens=8)
    assert [r.token_ids for r in together] == [
        decoder.generate([row], "exact", max_new_tokens=8)[0].token_ids for row in inputs
    ]


def test_a_row_that_ends_makes_room_for_the_next(bundled, sentences):
    """Of an iterator no more is taken than there is room for, and results come in its order."""
    taken: list[str] = []

    def texts():
        for text in sentences[:12]:
            taken.append(text)
            yield text

    results, ahead = [], []
    for result in bundled.generate_each(texts(), "large", batch_size=3):
        results.append(result.text)
        ahead.append(len(taken) - len(results))
    assert results == [result.text for result in bundled.generate(sentences[:12], "exact")]
    # Rows in flight, and results that wait for an earlier one.
    assert ahead[0] < 9 and len(taken) == 12


def test_an_input_that_cannot_be_used_loses_no_result_before_it(bundled, sentences):
    results = bundled.generate_each(iter([sentences[0], sentences[1], ""]), "large", batch_size=4)
    assert [next(results).text for _ in range(2)] == [r.text for r in bundled.generate(sentences[:2], "large")]
    with pytest.raises(InputError, match="empty"):
        next(results)


def test_models_of_two_kinds_are_refused():
    with pytest.raises(LoadError, match="the large model is encoder-decoder and the small one decoder-only"):
        BigLittleDecoder(build("t5"), build("gpt2"))


def test_what_is_no_network_or_tokenizer_is_said():
    network = build("gpt2", dtype=torch.float32)
    for arguments, says in (
        (("x", network), "large is 'x'; give a loaded model"),
        ((torch.nn.Linear(2, 2), network), "large is a Linear; give a loaded transformers model"),
        ((network, torch.nn.Linear(2, 2)), "small is a Linear; give a loaded transformers model"),
        ((network, network, "folder"), "tokenizer is 'folder'; give a loaded tokenizer"),
    ):
        with pytest.raises(InputError, match=says):
            BigLittleDecoder(*arguments)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_network_that_torch_compile_has_wrapped_is_the_network():
    large, small = build("gpt2", seed=1, dtype=torch.float32), build("gpt2", seed=2, dtype=torch.float32)
    plain, wrapped = BigLittleDecoder(large, small), BigLittleDecoder(large, torch.compile(small))
    assert wrapped.small.network is small and wrapped.batches
    one, other = (each.generate([[5, 6]], "bild", max_new_tokens=8)[0] for each in (plain, wrapped))
    assert one.token_ids == other.token_ids and one.writers == other.writers
    with pytest.raises(VocabularyError, match="heads have 40 and 48 rows"):
        BigLittleDecoder(large, torch.compile(build("gpt2", vocab_size=48, dtype=torch.float32)))


def test_a_pair_that_was_made_under_autocast_is_as_any_other():
    large, small = build("llama", seed=1, dtype=torch.float32), build("llama", seed=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = BigLittleDecoder(large, small)
        within = made.generate([[5, 6]], "exact", max_new_tokens=8)[0]
    assert len(within.token_ids) >= 1
    one, other = (
        each.generate([[5, 6]], "exact", max_new_tokens=8)[0] for each in (made, BigLittleDecoder(large, small))
    )
    assert one.token_ids == other.token_ids
