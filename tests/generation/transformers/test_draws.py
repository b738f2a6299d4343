"""Sampling through the door."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import bild
from bild import Policy, Stats
from tests.decoding.test_sampling import chi_square_p, warped
from tests.generation.transformers.doors import (
    ENCODES,
    every_architecture,
    facts,
    inputs_of,
    large_of,
    small_of,
    through,
)
from tests.networks import PAD, build, forward, perturbed


@pytest.mark.parametrize(
    "sharp", [{"temperature": 1e-7}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"top_h": 1e-3}]
)
@every_architecture
def test_warpers_shape_draws_alone(name, sharp):
    """So sharp a draw is greedy; confidences and distances are what they are without it."""
    policy = Policy.bild(fallback_threshold=0.2, rollback_threshold=1.0)
    loose = {"do_sample": True, "top_k": 0, "return_dict_in_generate": True}
    drawn = through(name, policy=policy, **(loose | sharp)).bild_results
    greedy = through(name, policy=policy, return_dict_in_generate=True).bild_results
    assert facts(drawn) == facts(greedy)


@every_architecture
def test_seeds_and_several_texts_of_each_input(name):
    loose = {"do_sample": True, "temperature": 1.5, "top_k": 0, "num_return_sequences": 4, "policy": "bild"}
    loose |= {"encoder_no_repeat_ngram_size": 1}

    # Made before: what weights they begin with is drawn, too.
    large_of(name), small_of(name)

    def drawn(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return through(name, **loose).tolist()

    texts = drawn(1)
    assert texts == drawn(1) != drawn(2)
    assert len(texts) == 12 and len({tuple(text) for text in texts}) > 8
    start = 1 if name in ENCODES else 5
    for text, source in zip(texts, inputs_of(name)["input_ids"].repeat_interleave(4, 0).tolist(), strict=True):
        assert not set(text[start:]) & (set(source) - {PAD})
        assert name in ENCODES or text[:start] == source


@every_architecture
def test_the_exact_policy_draws_what_the_large_model_alone_draws(name):
    loose = {"do_sample": True, "temperature": 1.5, "top_k": 0, "num_return_sequences": 4}

    def drawn(policy: str) -> Any:
        torch.manual_seed(5)
        return through(name, policy=policy, return_dict_in_generate=True, **loose)

    exact = drawn("exact:fallback_threshold=0.1")
    assert torch.equal(exact.sequences, drawn("large").sequences)
    stats = Stats.total(result.stats for result in exact.bild_results)
    assert stats.num_rollbacks > 5 and stats.num_accepted_tokens > 5


def penalised(logits: Tensor, tokens: list[int], penalty: float) -> Tensor:
    """Repetition penalty, written plainly."""
    changed = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(torch.isin(torch.arange(len(logits)), torch.tensor(tokens)), changed, logits)


def expected_texts(
    network: PreTrainedModel, ids: list[int], length: int, warp: Callable[[Tensor], Tensor], penalty: float
) -> dict[tuple[int, ...], float]:
    """The probability of every text of this length, from passes without any cache."""
    encodes = network.config.is_encoder_decoder
    shares: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, share in shares.items():
            tokens = [PAD, *text] if encodes else [*ids, *text]
            logits = penalised(forward(network, ids, tokens)[-1].double(), tokens, penalty)
            longer |= {(*text, token): share * p for token, p in enumerate(warp(logits[None]).softmax(-1)[0].tolist())}
        shares = longer
    return shares


def draws_of(
    large: PreTrainedModel, small: PreTrainedModel, ids: list[int], length: int, count: int, policy: str, **options: Any
) -> tuple[Counter[tuple[int, ...]], Stats]:
    """How often each text is drawn, and how."""
    seen: Counter[tuple[int, ...]] = Counter()
    results = []
    door = bild.custom_generate(small, policy)
    fixed = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": PAD, "max_new_tokens": length}
    for _ in range(0, count, 1000):
        output = large.generate(
            torch.tensor([ids]),
            custom_generate=door,
            num_return_sequences=min(count, 1000),
            return_dict_in_generate=True,
            **fixed,
            **options,
        )
        results += output.bild_results
        seen.update(tuple(text) for text in output.sequences[:, -length:].tolist())
    return seen, Stats.total(result.stats for result in results)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize(("temperature", "top_p", "penalty"), [(2.0, 1.0, 1.0), (4.0, 0.9, 1.0), (2.5, 0.8, 1.4)])
def test_rejection_sampling_draws_from_the_large_models_distribution(name, seed, temperature, top_p, penalty):
    """Chi-square over all texts of three tokens of a toy vocabulary."""
    sizes: dict[str, Any] = {"dtype": torch.float32, "vocab_size": 4} | (
        {"num_decoder_layers": 2} if name == "t5" else {}
    )
    large = build(name, seed=seed, **sizes)
    small, ids, count = perturbed(large, 0.4), [2, 3, 2], 2000
    torch.manual_seed(seed)
    options = {"temperature": temperature, "top_p": top_p, "repetition_penalty": penalty}
    seen, stats = draws_of(large, small, ids, 3, count, "speculative_sampling:window=2", **options)
    warp = warped(temperature, top_p)
    shares, others = (expected_texts(network, ids, 3, warp, penalty) for network in (large, small))
    assert chi_square_p(seen, {text: count * share for text, share in shares.items()}) > 0.01
    # The test can fail: the small model's distribution is another one.
    distance = sum(abs(shares[text] - others[text]) for text in shares) / 2
    assert distance > 0.1 and stats.num_rollbacks > 30 and stats.num_accepted_tokens > 100


@pytest.mark.parametrize(("name", "draws"), [("t5", 6_000), ("llama", 20_000)])
def test_first_tokens_of_thousands_of_draws(name, draws):
    ids, warp = [3, 9, 8, 4, 2], warped(3.0, 0.95)
    seen, stats = draws_of(
        large_of(name), small_of(name), ids, 2, draws, "speculative_sampling:window=2", temperature=3.0, top_p=0.95
    )
    first: Counter[tuple[int, ...]] = Counter()
    for text, times in seen.items():
        first[text[:1]] += times
    shares = expected_texts(large_of(name), ids, 1, warp, 1.0)
    assert chi_square_p(first, {text: draws * share for text, share in shares.items()}) > 0.01
    assert sum(share > 0 for share in shares.values()) > 5 and 0.1 < stats.num_rollbacks / stats.num_rounds < 0.9
