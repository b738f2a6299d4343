"""Big Little Decoder against transformers' own greedy generate(), and batches against single rows."""

from __future__ import annotations

from collections import Counter
from functools import cache
from random import Random

import pytest
import torch
from transformers import PreTrainedModel

from bild import BigLittleDecoder, Policy, Result, Stats
from tests.decoding.test_sampling import chi_square_p
from tests.networks import ARCHITECTURES, BATCHING, EOS, VOCAB_SIZE, build, perturbed, random_tokens, word_tokenizer

LENGTH = 20
LARGE_SEEDS = (1, 3)
POLICIES = {
    "bild": Policy.bild(fallback_threshold=0.3, rollback_threshold=1.0),
    "exact": "exact",
    "large": "large",
    "small": "small",
}

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


@cache
def large_of(name: str, seed: int) -> PreTrainedModel:
    return build(name, seed=seed, dtype=torch.float32)


@cache
def small_of(name: str, seed: int, kind: str) -> PreTrainedModel:
    """Another network with fewer layers, the large one with noise on its weights, or the large one itself."""
    if kind == "other":
        return build(name, seed=seed + 1, layers=1, dtype=torch.float32)
    if kind == "same":
        return large_of(name, seed)
    return perturbed(large_of(name, seed), 0.15)


@cache
def pair_of(name: str, seed: int = 1, kind: str = "noisy") -> BigLittleDecoder:
    return BigLittleDecoder(large_of(name, seed), small_of(name, seed, kind))


def inputs_of(count: int) -> list[list[int]]:
    rng = Random(0)
    return [random_tokens(rng, rng.randint(1, 12)) for _ in range(count)]


def greedy(network: PreTrainedModel, ids: list[int], **options) -> list[int]:
    """New tokens of transformers' generate(); uncached, for its cache of a T5 counts the encoder's layers."""
    given = torch.tensor([ids])
    plain = {"do_sample": False, "num_beams": 1, "max_new_tokens": LENGTH, "use_cache": False}
    written = network.generate(given, attention_mask=torch.ones_like(given), **(plain | options))[0].tolist()
    return written[1:] if network.config.is_encoder_decoder else written[len(ids) :]


@cache
def expected(name: str, seed: int = 1) -> list[list[int]]:
    return [greedy(large_of(name, seed), ids) for ids in inputs_of(3)]


def texts(results: list[Result]) -> list[list[int]]:
    return [result.token_ids for result in results]


def total_of(results: list[Result]) -> Stats:
    return Stats.total(result.stats for result in results)


@every_architecture
def test_exact_writes_what_the_large_model_generates(name):
    by_kind: dict[str, list[Result]] = {"other": [], "noisy": []}
    for kind, results in by_kind.items():
        for seed in LARGE_SEEDS:
            written = pair_of(name, seed, kind).generate(inputs_of(3), policy="exact", max_new_tokens=LENGTH)
            assert texts(written) == expected(name, seed)
            results += written
    noisy = total_of(by_kind["noisy"])
    assert total_of(by_kind["other"]).num_rollbacks > 0
    assert noisy.num_rollbacks > 0 and noisy.num_accepted_tokens > 0


@every_architecture
def test_exact_with_long_drafts(name):
    """Never unsure: every draft fills its window, so that rollbacks cut it anywhere."""
    policy = Policy.exact(fallback_threshold=0.0, max_draft_tokens=6)
    results = []
    for seed in LARGE_SEEDS:
        written = pair_of(name, seed).generate(inputs_of(3), policy=policy, max_new_tokens=LENGTH)
        assert texts(written) == expected(name, seed)
        results += written
    cuts = {commit.accepted for result in results for commit in result.rounds if commit.rolled_back}
    assert 0 in cuts and len(cuts) > 2


@pytest.mark.parametrize("kind", ["other", "noisy", "same"])
@every_architecture
def test_lossless_policies_with_any_drafter_in_any_batch(name, kind):
    for policy in ("exact", "speculative_sampling:window=4"):
        for batch_size in (1, 8):
            written = pair_of(name, 1, kind).generate(
                inputs_of(3), policy, batch_size=batch_size, max_new_tokens=LENGTH
            )
            assert texts(written) == expected(name)


def test_rejection_sampling_of_a_real_network_draws_from_its_distribution():
    """20,000 first tokens beside the large network's own softmax; the second token keeps drafts two long."""
    draws, ids, options = 20_000, inputs_of(3)[2], {"temperature": 4.0, "top_p": 0.9}
    large, pair = large_of("llama", 1), pair_of("llama", 1, "noisy")
    results = pair.generate([ids] * draws, "speculative_sampling:window=2", batch_size=1000, do_sample=True,
                            max_new_tokens=2, seed=list(range(draws)), **options)  # fmt: skip
    with torch.inference_mode():
        logits = large(torch.tensor([ids])).logits[0, -1].double() / options["temperature"]
    p, order = logits.softmax(-1).sort(descending=True)
    kept = torch.zeros_like(p).scatter(0, order, p * ((p.cumsum(-1) - p) < options["top_p"]))
    expected = {(token,): draws * float(share) for token, share in enumerate(kept / kept.sum()) if share > 0}
    seen = Counter((result.token_ids[0],) for result in results)
    assert len(expected) > 3 and chi_square_p(seen, expected) > 0.01
    total = total_of(results)
    assert 0.1 < total.num_rollbacks / total.num_rounds < 0.9


@every_architecture
def test_each_model_alone_writes_what_it_generates(name):
    pair = pair_of(name, 1, "other")
    by_large = texts(pair.generate(inputs_of(3), policy="large", max_new_tokens=LENGTH))
    by_small = texts(pair.generate(inputs_of(3), policy="small", max_new_tokens=LENGTH))
    assert by_large == expected(name)
    assert by_small == [greedy(pair.small.network, ids) for ids in inputs_of(3)]
    assert by_small != by_large


@every_architecture
def test_the_end_token_ends_both_alike(name):
    """Ends are rare in random text, so a token that the large model does write is made one."""
    lengths = []
    for ids, text in zip(inputs_of(3), expected(name), strict=True):
        end = {"eos_token_id": [EOS, text[len(text) // 2]]}
        result = pair_of(name).generate([ids], policy="exact", max_new_tokens=LENGTH, **end)[0]
        assert result.token_ids == greedy(large_of(name, 1), ids, **end)
        assert result.finish_reason == "eos"
        lengths.append(len(result.token_ids))
    assert min(lengths) < LENGTH


def facts(result: Result) -> tuple:
    rounds = [(c.tokens, c.writers, c.draft, c.accepted, c.reason, c.verified, c.doubtful) for c in result.rounds]
    return result.finish_reason, result.stats, rounds


def passes_of(pair: BigLittleDecoder, batch_size: int, **options) -> tuple[list[Result], int]:
    """The results, and how often either network ran."""
    passes: list[int] = []
    networks = (pair.large.network, pair.small.network)
    hooks = [network.register_forward_hook(lambda *_: passes.append(1)) for network in networks]
    results = pair.generate(inputs_of(9), batch_size=batch_size, max_new_tokens=12, **options)
    for hook in hooks:
        hook.remove()
    return results, len(passes)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["t5", "gpt2", "llama", "mistral", "bart"])
def test_a_batch_equals_row_by_row(name, policy):
    pair = pair_of(name)
    alone, singly = passes_of(pair, 1, policy=POLICIES[policy])
    together, batched = passes_of(pair, 16, policy=POLICIES[policy])
    assert [facts(result) for result in together] == [facts(result) for result in alone]
    assert pair.batches is (name in BATCHING)
    assert (batched < singly) if pair.batches else (batched == singly)
    if policy in ("bild", "exact"):
        total = total_of(together)
        assert total.num_rollbacks > 0 and 0 < total.num_accepted_tokens < total.num_draft_tokens


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_any_batch_size_gives_the_same(name):
    alone, _ = passes_of(pair_of(name), 1)
    together, _ = passes_of(pair_of(name), 4)
    assert [facts(result) for result in together] == [facts(result) for result in alone]


@pytest.mark.parametrize("name", ["t5", "gpt2", "llama"])
def test_a_padded_head_writes_no_token_beyond_the_shared_vocabulary(name):
    padded = build(name, seed=1, layers=2, dtype=torch.float32, vocab_size=VOCAB_SIZE + 24)
    tokenless = {"suppress_tokens": list(range(VOCAB_SIZE, VOCAB_SIZE + 24))}
    wanted = [greedy(padded, ids, **tokenless) for ids in inputs_of(3)]
    assert wanted != [greedy(padded, ids) for ids in inputs_of(3)]
    tokenizer = word_tokenizer()
    pair = BigLittleDecoder(padded, small_of(name, 1, "other"), tokenizer, small_tokenizer=tokenizer)
    for policy in ("exact", "large"):
        assert texts(pair.generate(inputs_of(3), policy=policy, max_new_tokens=LENGTH)) == wanted


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_fifty_rows_together_are_fifty_texts(name):
    pair, options = pair_of(name), {"max_new_tokens": 8, "policy": POLICIES["bild"]}
    alone = [pair.generate([ids], **options)[0] for ids in inputs_of(50)]
    together = pair.generate(inputs_of(50), batch_size=50, **options)
    assert [facts(result) for result in together] == [facts(result) for result in alone]
    assert len({tuple(result.token_ids) for result in together}) > 25
