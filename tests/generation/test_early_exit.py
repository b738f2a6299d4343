"""A model and its own first layers as a pair: the same texts as the whole model alone, at the price of one."""

from __future__ import annotations

import json
from functools import cache
from random import Random

import pytest
import torch

from bild import BigLittleDecoder, InputError, LoadError, Pair, Policy, Stats
from bild.evaluation.own import PolicyMethod
from tests.early_exits import EXIT, EXITING, STATIC, deep, exit_pair
from tests.marking import with_runtime
from tests.networks import build, random_tokens

LENGTH = 16
RUNTIMES = [*with_runtime(EXITING, "eager"), *with_runtime(STATIC, "static")]
EXACT = {
    "unsure": Policy.exact(fallback_threshold=0.3, max_draft_tokens=6),
    "long drafts": Policy.exact(fallback_threshold=0.0, max_draft_tokens=4),
    "at once": Policy.exact(fallback_threshold=2.0),
}
BILD = Policy.bild(fallback_threshold=0.3, rollback_threshold=4.0)

every_runtime = pytest.mark.parametrize(("name", "runtime"), RUNTIMES)


def inputs_of(count: int) -> list[list[int]]:
    rng = Random(0)
    return [random_tokens(rng, rng.randint(1, 12)) for _ in range(count)]


def greedy(network, ids: list[int], end: int) -> list[int]:
    """The text a network writes alone, without any cache."""
    encodes = network.config.is_encoder_decoder
    tokens, prompt = ([0], 1) if encodes else (list(ids), len(ids))
    inputs = {"input_ids": torch.tensor([ids])} if encodes else {}
    name = "decoder_input_ids" if encodes else "input_ids"
    with torch.inference_mode():
        while len(tokens) - prompt < LENGTH and (len(tokens) == prompt or tokens[-1] not in (1, end)):
            logits = network(**inputs, **{name: torch.tensor([tokens])}, use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[prompt:]


@cache
def alone(name: str, runtime: str, side: str) -> tuple[int, list[list[int]]]:
    """A token that ends texts, and what one side writes alone."""
    network = getattr(exit_pair(name, runtime), side).network
    # Ends are rare in random text, so a token that the whole model does write is made one.
    written = greedy(deep(name, runtime), inputs_of(1)[0], end=1)
    end = written[len(written) // 2]
    return end, [greedy(network, ids, end) for ids in inputs_of(8)]


@every_runtime
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("policy", EXACT)
def test_exact_is_the_whole_model_alone_token_for_token(name, runtime, batch_size, policy):
    end, expected = alone(name, runtime, "large")
    options = {"max_new_tokens": LENGTH, "eos_token_id": [1, end], "batch_size": batch_size}
    results = exit_pair(name, runtime).generate(inputs_of(8), EXACT[policy], lossless=True, **options)
    assert [result.token_ids for result in results] == expected
    total = Stats.total(result.stats for result in results)
    drafts = policy != "at once"
    assert (total.num_draft_tokens > 0, total.num_rollbacks > 0, total.num_accepted_tokens > 0) == (drafts,) * 3


@every_runtime
@pytest.mark.parametrize("side", ["large", "small"])
def test_either_side_alone_is_its_network(name, runtime, side):
    end, expected = alone(name, runtime, side)
    options = {"max_new_tokens": LENGTH, "eos_token_id": [1, end]}
    for batch_size in (1, 4):
        results = exit_pair(name, runtime).generate(inputs_of(8), side, batch_size=batch_size, **options)
        assert [result.token_ids for result in results] == expected
    assert expected != alone(name, runtime, "small" if side == "large" else "large")[1]


@every_runtime
def test_sharing_changes_nothing(name, runtime):
    """The same two models as two checkpoints, which share no cache."""
    small = exit_pair(name, runtime).small
    parts = (small.eager if runtime == "static" else small).parts
    apart = BigLittleDecoder(parts.network, parts.small)
    options = {"max_new_tokens": LENGTH, "eos_token_id": [1, alone(name, runtime, "large")[0]]}
    for policy in (BILD, EXACT["unsure"]):
        expected = [(r.token_ids, r.writers, r.stats) for r in apart.generate(inputs_of(5), policy, **options)]
        for batch_size in (1, 4):
            results = exit_pair(name, runtime).generate(inputs_of(5), policy, batch_size=batch_size, **options)
            assert [(r.token_ids, r.writers, r.stats) for r in results] == expected
    assert sum(stats.num_rollbacks for *_, stats in expected) > 0
    assert sum(stats.num_accepted_tokens for *_, stats in expected) > 0


@pytest.mark.parametrize("batch_size", [1, 4])
def test_sampling_draws_the_same(batch_size):
    parts = exit_pair("gpt2", "eager").small.parts
    options = {"max_new_tokens": LENGTH, "do_sample": True, "temperature": 0.7, "seed": 3, "batch_size": batch_size}
    expected = BigLittleDecoder(parts.network, parts.small).generate(inputs_of(8), BILD, **options)
    found = exit_pair("gpt2", "eager").generate(inputs_of(8), BILD, **options)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]


def test_the_bundled_large_model_exits_early(bundled, sentences):
    pair = BigLittleDecoder(bundled.large.network, "exit:6", bundled.tokenizer, small_tokenizer=bundled.tokenizer)
    results = pair.generate(sentences[:12], "exact", batch_size=4)
    assert [r.text for r in results] == [r.text for r in bundled.generate(sentences[:12], "large")]
    assert 0 < Stats.total(r.stats for r in results).acceptance_rate < 1
    assert "".join(pair.stream(sentences[3], "exact")) == results[3].text


def test_a_pair_is_saved_with_one_checkpoint_and_loaded_again(tmp_path):
    policy = Policy.bild(fallback_threshold=0.2, rollback_threshold=1.5)
    pair = BigLittleDecoder(deep("llama"), f"exit:{EXIT}", policy=policy)
    pair.save_pretrained(tmp_path / "pair")
    assert sorted(file.name for file in (tmp_path / "pair").iterdir()) == ["bild.json", "large"]
    written = json.loads((tmp_path / "pair" / "bild.json").read_text())
    assert (written["large"], written["small"]) == ("large", f"exit:{EXIT}")
    assert Pair.load(tmp_path / "pair").small == f"exit:{EXIT}"
    loads = {"pair": tmp_path / "pair"}, {"large": tmp_path / "pair" / "large", "small": f"exit:{EXIT}"}
    expected = [result.token_ids for result in pair.generate(inputs_of(3), policy, max_new_tokens=LENGTH)]
    for names in loads:
        loaded = BigLittleDecoder.from_pretrained(**names, dtype="float64", runtime="eager")
        assert [r.token_ids for r in loaded.generate(inputs_of(3), policy, max_new_tokens=LENGTH)] == expected
        assert (loaded.policy == policy) == ("pair" in names)
    other = BigLittleDecoder.from_pretrained(tmp_path / "pair", small="exit:1", dtype="float64", runtime="eager")
    assert other.small.network.config.num_hidden_layers == 1


def test_int8_weights(tmp_path):
    build("t5", layers=3, width=32).save_pretrained(tmp_path)
    pair = BigLittleDecoder.from_pretrained(large=tmp_path, small="exit:2", dtype="int8", runtime="eager")
    options = {"max_new_tokens": LENGTH, "eos_token_id": []}
    whole = [
        r.token_ids
        for r in BigLittleDecoder(pair.large.network, pair.large.network).generate(inputs_of(4), "large", **options)
    ]
    assert pair.dtype == "int8" and pair.small.network.config.num_decoder_layers == 2
    assert [r.token_ids for r in pair.generate(inputs_of(4), "large", **options)] == whole


def test_the_weights_of_a_pair_are_those_of_its_large_model():
    pair = exit_pair("t5", "eager")
    by_policy = {
        name: PolicyMethod(name, pair, Policy.preset(name), {}).weight_bytes for name in ("large", "bild", "small")
    }
    assert by_policy["bild"] == by_policy["large"] > by_policy["small"]


@pytest.mark.parametrize(
    ("small", "error", "message"),
    [
        ("exit:0", LoadError, "GPT2LMHeadModel has 4 decoder layers; allowed is exit:1 to exit:3"),
        ("exit:4", LoadError, "GPT2LMHeadModel has 4 decoder layers; allowed is exit:1 to exit:3"),
        ("exit:two", InputError, "an early exit is 'exit:two'; write exit:N, the first N decoder layers"),
        ("gpt2", InputError, "small is 'gpt2'; give a network, or exit:N, or load both with from_pretrained"),
    ],
)
def test_what_is_no_exit_is_refused(small, error, message):
    with pytest.raises(error, match=message):
        BigLittleDecoder(deep("gpt2"), small)
