"""The static runtime writes what the eager one writes, token for token."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
import torch

from bild import BigLittleDecoder, Policy, Result, Stats
from bild.models import CompiledModel, EagerModel
from bild.models.compiled import compiling
from tests.compiled import network_of, pair_of, static_model, without_templates
from tests.networks import BATCHING, POSITIONS, random_tokens

pytestmark = pytest.mark.compiles

LENGTH = 24
POLICIES = {
    "bild": Policy.bild(fallback_threshold=0.3, rollback_threshold=4.0),
    "exact": Policy.exact(fallback_threshold=0.3, max_draft_tokens=6),
    "speculative_sampling": Policy.speculative_sampling(window=4),
    "adaptive": Policy.adaptive(),
    "large": Policy.large(),
    "small": Policy.small(),
}
# Each architecture once as the large and once as the small model, so that none is compiled twice.
PAIRS = (
    ("t5", "bart"),
    ("bart", "t5"),
    ("mt5", "marian"),
    ("marian", "mt5"),
    ("llama", "gpt2"),
    ("gpt2", "llama"),
    ("qwen2", "mistral"),
    ("mistral", "qwen2"),
)


def pairs(of: Iterable[tuple[str, str]]) -> Any:
    return pytest.mark.parametrize(("large", "small"), of)


every_pair = pairs(PAIRS)
every_policy = pytest.mark.parametrize("policy", POLICIES)


def inputs_of(count: int) -> list[list[int]]:
    rng = Random(0)
    return [random_tokens(rng, rng.randint(1, 12)) for _ in range(count)]


def facts(result: Result) -> tuple:
    """What a text is and how it came about; how many tokens a model writes alone in a round is up to the runtime."""
    rounds = [
        (c.tokens, c.writers, c.draft, c.accepted, c.reason, c.verified, c.doubtful)
        for c in result.rounds
        if c.reason is not None
    ]
    return result.token_ids, result.writers, result.finish_reason, rounds


@pairs([("t5", "bart"), ("llama", "gpt2")])
@pytest.mark.parametrize("policy", ["large", "exact"])
def test_static_finds_by_beams_what_eager_finds(large, small, policy):
    options: dict[str, Any] = {"num_beams": 3, "max_new_tokens": LENGTH}
    expected = pair_of(large, small, "eager").generate(inputs_of(6), policy, **options)
    for batch_size in (1, 4):
        found = pair_of(large, small, "static").generate(inputs_of(6), policy, batch_size=batch_size, **options)
        assert [[h.tokens for h in r.hypotheses] for r in found] == [[h.tokens for h in r.hypotheses] for r in expected]


def run(pair: BigLittleDecoder, policy: Policy, **options) -> list[Result]:
    return pair.generate(inputs_of(8), policy, max_new_tokens=LENGTH, **options)


@cache
def by_eager(large: str, small: str, policy: str) -> list[Result]:
    return run(pair_of(large, small, "eager"), POLICIES[policy])


@every_pair
@every_policy
def test_static_writes_what_eager_writes(large, small, policy):
    expected = by_eager(large, small, policy)
    found = run(pair_of(large, small, "static"), POLICIES[policy])
    assert [facts(result) for result in found] == [facts(result) for result in expected]


@pytest.mark.parametrize("policy", ["bild", "exact", "speculative_sampling", "adaptive"])
@pytest.mark.parametrize(("large", "small"), [("t5", "bart"), ("llama", "gpt2")])
def test_the_same_seed_draws_the_same_text_on_both_runtimes(large, small, policy):
    sampled = {"do_sample": True, "temperature": 0.8, "seed": 7}
    expected = run(pair_of(large, small, "eager"), POLICIES[policy], **sampled)
    found = run(pair_of(large, small, "static"), POLICIES[policy], **sampled)
    assert [facts(result) for result in found] == [facts(result) for result in expected]
    assert [result.token_ids for result in found] != [r.token_ids for r in by_eager(large, small, policy)]


@every_pair
def test_the_pairs_draft_accept_and_roll_back(large, small):
    total = Stats.total(result.stats for result in by_eager(large, small, "bild"))
    assert total.num_rollbacks > 0 and 0 < total.num_accepted_tokens < total.num_draft_tokens
    assert Stats.total(result.stats for result in by_eager(large, small, "exact")).num_rollbacks > 0


@every_pair
@every_policy
def test_a_batch_of_four_writes_what_single_rows_write(large, small, policy):
    pair = pair_of(large, small, "static")
    assert pair.batches is (large in BATCHING and small in BATCHING)
    expected = by_eager(large, small, policy)
    found = run(pair, POLICIES[policy], batch_size=4)
    assert [facts(result) for result in found] == [facts(result) for result in expected]


@every_pair
def test_the_end_token_ends_both_alike(large, small):
    """Ends are rare in random text, so a token that the large model does write is made one."""
    end = by_eager(large, small, "large")[0].token_ids[LENGTH // 2]
    options = {"eos_token_id": [1, end]}
    for policy in POLICIES.values():
        expected = run(pair_of(large, small, "eager"), policy, **options)
        found = run(pair_of(large, small, "static"), policy, **options)
        assert [facts(result) for result in found] == [facts(result) for result in expected]


@pairs([*PAIRS[:2], ("t5", "mt5"), ("mt5", "t5")])
def test_texts_that_outgrow_the_first_storage(large, small):
    options = {"max_new_tokens": 90, "eos_token_id": []}
    for policy in ("bild", "exact"):
        inputs = inputs_of(3)
        expected = pair_of(large, small, "eager").generate(inputs, POLICIES[policy], **options)
        for size in (1, 3):
            found = pair_of(large, small, "static").generate(inputs, POLICIES[policy], batch_size=size, **options)
            assert [facts(result) for result in found] == [facts(result) for result in expected]
        # Bart has positions for less: twice what the first storage holds, and not three times.
        longest = POSITIONS - 1 if "bart" in (large, small) else 90
        assert {len(result.token_ids) for result in expected} == {longest}


@pairs([PAIRS[0], PAIRS[3], PAIRS[4]])
def test_no_request_of_any_shape_compiles_again(large, small, monkeypatch):
    """Rows, lengths of sources, prompts and texts, policies and drawn tokens: one graph reads them all."""
    pair = pair_of(large, small, "static")
    asked: list[object] = []
    monkeypatch.setattr(compiling, "compiled", lambda *arguments, **_: asked.append(arguments))
    traced = torch._dynamo.utils.counters["stats"].copy()
    rng = Random(1)
    for count, length, new in ((1, 1, 1), (2, 3, 5), (5, 17, 2), (3, 40, 50), (20, 2, 7)):
        inputs = [random_tokens(rng, rng.randint(1, length)) for _ in range(count)]
        for policy in ("bild", "speculative_sampling"):
            draws = {} if policy == "bild" else {"do_sample": True, "seed": 1}
            options = {"max_new_tokens": new, "batch_size": count}
            assert len(pair.generate(inputs, POLICIES[policy], **options, **draws)) == count
    assert (asked, torch._dynamo.utils.counters["stats"]) == ([], traced)


@pytest.mark.parametrize(("large", "small", "kind"), [(1, 1, CompiledModel), (1, 2, EagerModel), (2, 1, EagerModel)])
def test_auto_is_static_where_both_have_been_compiled(large, small, kind):
    static_model("gpt2")
    before = compiling.compilations
    pair = BigLittleDecoder(network_of("gpt2", large), network_of("gpt2", small), runtime="auto")
    assert (type(pair.large), type(pair.small), compiling.compilations) == (kind, kind, before)


@pytest.fixture(scope="module")
def compiled_pair(bundled) -> BigLittleDecoder:
    """The bundled pair in float32, where rounding does not decide."""
    for model in bundled.models:
        assert without_templates(model.network).is_compiled
    pair = BigLittleDecoder.from_pretrained(dtype="float32", runtime="static")
    assert pair.large.is_compiled and pair.small.is_compiled
    return pair


@pytest.mark.parametrize("policy", ["bild", "exact", "large", "small"])
def test_the_bundled_pair_writes_what_it_writes_uncompiled(policy, bundled, compiled_pair, sentences):
    texts = sentences[::2]
    expected = [facts(result) for result in bundled.generate(texts, policy, batch_size=8)]
    assert [facts(result) for result in compiled_pair.generate(texts, policy)] == expected
    if policy in ("bild", "exact"):
        assert [facts(result) for result in compiled_pair.generate(texts, policy, batch_size=4)] == expected


def test_the_bundled_pair_streams(compiled_pair, sentences):
    (result,) = compiled_pair.generate(sentences[22], "bild")
    assert "".join(compiled_pair.stream(sentences[22], "bild")) == result.text != ""


def cascades(runtime: str) -> dict[str, BigLittleDecoder]:
    """A middle model of its own, and the small one in between; of networks that other tests compile too."""
    large, middle, small = (network_of(name) for name in ("qwen2", "llama", "gpt2"))
    with patch.object(compiling, "TEMPLATES", compiling.LIBRARY):
        return {
            "network": BigLittleDecoder(large, small, middle=middle, middle_window=2, runtime=runtime),
            "chain": BigLittleDecoder(large, small, middle="small", drafter="ngram:shortest=1", runtime=runtime),
        }


def test_a_compiled_model_in_between_judges_as_the_eager_one():
    eager, static = cascades("eager"), cascades("static")
    how = {"max_new_tokens": 12, "batch_size": 3}
    for kind, pair in static.items():
        assert isinstance(pair.middle, CompiledModel)
        alone, exact = (pair.generate(inputs_of(3), POLICIES[name], **how) for name in ("large", "exact"))
        assert [each.token_ids for each in exact] == [each.token_ids for each in alone]
        for policy, options in (("exact", {}), ("speculative_sampling", {"do_sample": True, "seed": 5})):
            found, expected = (
                [facts(each) for each in each_pair.generate(inputs_of(3), POLICIES[policy], **how, **options)]
                for each_pair in (pair, eager[kind])
            )
            assert found == expected, (kind, policy)
    single = static["network"].generate(inputs_of(3), POLICIES["exact"], max_new_tokens=12)
    together = static["network"].generate(inputs_of(3), POLICIES["exact"], **how)
    assert [facts(each) for each in single] == [facts(each) for each in together]
