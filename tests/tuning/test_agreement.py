"""Tuning on prompts alone: the large model's own texts, and its perplexity, in place of references."""

from __future__ import annotations

import json
import math
from functools import cache, partial

import numpy as np
import pytest
import torch

from bild import BigLittleDecoder, Policy
from bild.data import Example
from bild.errors import InputError
from bild.evaluation.measure import measure
from bild.evaluation.surprise import surprise_of
from bild.tuning import bench, grid, search, tune
from bild.tuning.agreement import Agreement, metric_named, promise, without_references
from bild.tuning.bench import Bench, large_alone
from bild.tuning.simulation import Simulator
from bild.tuning.traces import Branch, Reader, Tree
from tests.evaluation.chats import chat_pair
from tests.networks import build, perturbed, word_tokenizer

GRID = [Policy.bild(fallback_threshold=0.2, rollback_threshold=far, verify_end=True) for far in (0.0, 2.0, 9.0)]
PROMPTS = [Example(str(n), f"w{n} w{n + 9} w{(7 * n) % 30 + 2}") for n in range(4, 12)]


@pytest.fixture(autouse=True)
def _no_warming_up(monkeypatch):
    monkeypatch.setattr(bench, "measure", partial(measure, warm_up=1))
    monkeypatch.setattr(grid, "EXACT_FALLBACK", (0.3,))
    monkeypatch.setattr(grid, "EXACT_WINDOWS", (10,))
    monkeypatch.setattr(search, "REFINEMENTS", 0)


def run(out, budget: float, metric: str, **options):
    given = {"confidence": None, "grid": GRID, "max_new_tokens": 8} | options
    return tune(chat_pair(), {"one": PROMPTS[:4], "two": PROMPTS[4:]}, out=out, budget=budget, metric=metric, **given)


@cache
def double() -> BigLittleDecoder:
    large = build("llama", seed=1, dtype=torch.float64)
    return BigLittleDecoder(large, perturbed(large, 0.15), word_tokenizer())


def test_what_has_been_read_says_how_surprising_every_text_is():
    """Along every policy's text, the numbers of the tree are those of one pass over it."""
    pair = double()
    trees = [Tree(job) for job in pair.jobs([each.source for each in PROMPTS], max_new_tokens=9)]
    simulator = Simulator(trees, Reader(pair, trees))
    simulator.run([*GRID, Policy.exact()], range(len(trees)))
    texts = {(i, of[i].tokens) for of in simulator.outcomes.values() for i in range(len(trees))}
    assert len(texts) > len(trees)
    for index, tokens in texts:
        job = trees[index].job
        expected = surprise_of(pair.large, job.source, job.request.prompt, tokens)
        assert trees[index].surprise(tokens) == pytest.approx(expected, rel=1e-9)
    # A text that nobody has written is not known, nor one that was read before this number was kept.
    assert trees[0].surprise([39, 38, 37, 36]) is None
    old = Tree(trees[0].job)
    Reader(pair, [old])._grow(Branch(0, (), [5], [0.5], [6], [3.0]))
    assert old.surprise([5]) == 3.0 and old.child(old.root, 6) and old.surprise([6]) is None


def test_scores_by_hand():
    large = [(4, 5, 6, 1), (7, 1)]
    texts = [(4, 5, 9, 9, 1), (7, 1)]
    surprise = {0: 3.0, 1: 0.5}

    def scored(name: str, written: list[tuple[int, ...]]) -> float:
        metric = Agreement(name, large, lambda index, tokens: surprise[index])
        return metric.score(np.sum([metric.of_tokens(i, tokens) for i, tokens in enumerate(written)], axis=0))

    assert scored("same_tokens", texts) == 50 and scored("same_tokens", large) == 100
    assert scored("same_prefix", texts) == pytest.approx(100 * 4 / 6) and scored("same_prefix", large) == 100
    assert scored("perplexity", texts) == pytest.approx(-100 * 3.5 / 7)
    assert Agreement("perplexity").score([0.0, 0.0]) is None


@pytest.mark.parametrize("metric", ["same_tokens", "same_prefix", "perplexity", "rougeL"])
def test_prompts_alone_are_compared_with_the_large_model_s_own_texts(tmp_path, metric):
    loose = run(tmp_path / "loose", 1e6, metric)
    assert not loose.policy.lossless and max(loose.loss.values()) > 0
    # By the run itself: large and the chosen policy, both summed up here.
    pair, sets = chat_pair(), {"one": PROMPTS[:4], "two": PROMPTS[4:]}
    for name, members in sets.items():
        own, large = (
            pair.generate([each.source for each in members], policy, max_new_tokens=8)
            for policy in (loose.policy, "large")
        )
        same = sum(a.token_ids == b.token_ids for a, b in zip(own, large, strict=True))
        figures = loose.agreement[name]
        assert (figures["texts"], figures["same_tokens"]) == (4, 25.0 * same)
        mine, theirs = (perplexity_of(pair, members, results) for results in (own, large))
        assert figures["perplexity"] == pytest.approx(mine, rel=1e-3)
        assert figures["perplexity_large"] == pytest.approx(theirs, rel=1e-3)
        expected = {
            "same_tokens": 100 - 25 * same,
            "same_prefix": 100 - figures["same_prefix"],
            "rougeL": 100 - figures["rougeL"],
            "perplexity": 100 * math.log(mine / theirs),
        }
        assert loose.loss[name] == pytest.approx(expected[metric], abs=0.05)
    evidence = json.loads((tmp_path / "loose" / "tune.json").read_text())["evidence"]
    assert evidence["against"] == "large" and evidence["dev"]["one"]["agreement"] == dict(loose.agreement["one"])
    assert evidence["tuned_for"].startswith(promise(metric, 1e6))


def test_a_budget_of_nothing_keeps_the_large_model_s_texts(tmp_path):
    strict = run(tmp_path, 0.0, "same_tokens")
    assert strict.within_budget and max(strict.loss.values()) == 0 and strict.agreement["one"]["same_tokens"] == 100


def perplexity_of(pair: BigLittleDecoder, members, results) -> float:
    jobs = pair.jobs([each.source for each in members])
    nats = [surprise_of(pair.large, [], job.request.prompt, r.token_ids) for job, r in zip(jobs, results, strict=True)]
    return math.exp(sum(nats) / sum(len(r.token_ids) for r in results))


def test_a_confidence_holds_for_agreement_too(tmp_path):
    found = run(tmp_path, 1e9, "perplexity", confidence=0.8)
    assert found.enough_texts and found.verdict is not None and "with confidence 0.8" in found.evidence()["tuned_for"]
    few = run(tmp_path / "few", 0.5, "same_tokens", confidence=0.9)
    assert not few.enough_texts and few.policy.lossless and min(few.verdict.too_small.values()) > 50


def test_with_references_perplexity_may_be_the_budget_all_the_same(tmp_path):
    sets = {"one": [Example(each.id, each.source, ("w5 w6",)) for each in PROMPTS[:4]]}
    found = tune(
        chat_pair(), sets, out=tmp_path, budget=1e6, metric="perplexity", confidence=None, grid=GRID, max_new_tokens=8
    )
    assert not found.agreement and max(found.loss.values()) > 0
    # The quality that is shown is against the references that were given.
    assert found.summary.sets["one"].methods["large"].quality["rougeL"].value < 50


def test_references_are_the_large_model_s_texts(tmp_path):
    pair = chat_pair()
    own = Bench(pair, {"one": PROMPTS}, options={"max_new_tokens": 8})
    found = own.search(tmp_path / "traces.jsonl", "rougeL", costs=None)
    texts = pair.generate([each.source for each in PROMPTS], "large", max_new_tokens=8)
    assert [each.references for _, each in found.texts.examples] == [(result.text,) for result in texts]
    assert [each.tokens for each in large_alone(found.simulator)] == [tuple(result.token_ids) for result in texts]


def test_names_and_promises():
    assert without_references({"a": PROMPTS}) and metric_named("same_prefix").name == "same_prefix"
    with pytest.raises(InputError, match=r"metric is 'comet'; allowed are bleu, .*, same_tokens, same_prefix, perp"):
        metric_named("comet")
    with pytest.raises(InputError, match=r"BLEU's tokenizer is 'x'; allowed are .*flores200$"):
        metric_named("bleu:x")
    assert promise("perplexity", 2).startswith("at most 2 percent more perplexity")
    assert promise("bleu", 0.3) == "at most 0.3 BLEU less than the large model on each set"
