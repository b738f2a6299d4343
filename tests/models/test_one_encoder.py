"""Two networks with one encoder: a source is read once, and both models score as they do without each other."""

from __future__ import annotations

import copy
import pickle
from contextlib import ExitStack, contextmanager
from functools import cache
from random import Random
from unittest.mock import patch

import pytest
import torch
from transformers import PreTrainedModel

from bild import BigLittleDecoder
from bild.cli.info import _print_table, describe
from bild.models import CompiledModel, run_pair
from bild.models.compiled import compiling
from bild.models.cutting import with_layers
from bild.models.eager import sources as eager_sources
from bild.models.one_encoder import CompiledBorrower, CompiledLender, EagerBorrower, have_one_encoder
from bild.models.one_encoder.compiled import is_pair_prepared
from bild.models.parts import decoder_of, encoder_of
from tests.compiled import network_of
from tests.marking import with_runtime
from tests.networks import ENCODER_DECODERS, build, forward, perturbed, random_source, random_tokens

BART = pytest.param("bart", "static", marks=[pytest.mark.compiles, pytest.mark.thorough])
every_runtime = pytest.mark.parametrize(
    ("name", "runtime"),
    [
        *with_runtime(ENCODER_DECODERS, "eager"),
        *with_runtime(["t5", "bart"], "recorded"),
        *with_runtime(["t5"], "static"),
        BART,
    ],
)


@cache
def networks(name: str, runtime: str = "eager") -> tuple[PreTrainedModel, PreTrainedModel]:
    """A network, and another one of its first decoder layer and its encoder; nobody may change them."""
    large = build(name) if runtime != "static" else network_of(name)
    return large, drafter_of(large)


def drafter_of(large: PreTrainedModel) -> PreTrainedModel:
    """Its first decoder layer, apart from it, beside its encoder."""
    small = copy.deepcopy(with_layers(large, [0]))
    others = dict(perturbed(small, 0.5).named_parameters())
    kept = {id(weight) for weight in encoder_of(small).parameters()}
    with torch.no_grad():
        for name, weight in decoder_of(small).named_parameters(prefix="decoder"):
            if id(weight) not in kept:
                full = next(each for each in others if each.endswith(name))
                weight.copy_(others[full])
    return small


@contextmanager
def as_run(runtime: str):
    """While models are made, and made anew."""
    with ExitStack() as stack:
        # As in tests.compiled: matrix products of Inductor's own cost ten seconds a graph, and what a GPU runs is all
        # but the recording.
        stack.enter_context(patch.object(compiling, "TEMPLATES", compiling.LIBRARY))
        if runtime == "recorded":
            for place in ("compiled.model", "one_encoder.compiled"):
                stack.enter_context(patch(f"bild.models.{place}.is_recorded", lambda _: True))
        yield


def models_of(large: PreTrainedModel, small: PreTrainedModel, runtime: str):
    with as_run(runtime):
        return run_pair(large, small, "eager" if runtime == "eager" else "static")


@cache
def shared_models(name: str, runtime: str):
    return models_of(*networks(name, runtime), runtime)


def encoded_by(model, monkeypatch) -> list[int]:
    """Grows at each encoding by how many sources there are."""
    counts: list[int] = []
    if isinstance(model, CompiledModel):
        encode = model.graphs.run_encode

        def counting(inputs):
            counts.append(len(inputs[0]))
            return encode(inputs)

        monkeypatch.setattr(model.graphs, "run_encode", counting)
    else:
        original = eager_sources.encoder_of

        def counting_encoder(network):
            counts.append(1)
            return original(network)

        monkeypatch.setattr(eager_sources, "encoder_of", counting_encoder)
    return counts


@every_runtime
def test_both_score_as_without_each_other(name, runtime):
    rng, pair = Random(0), networks(name, runtime)
    large, small = shared_models(name, runtime)
    assert isinstance(small, EagerBorrower if runtime == "eager" else CompiledBorrower)
    close = {"rtol": 0.0, "atol": 1e-4 if runtime == "static" else 1e-9}
    for _ in range(4):
        rows = rng.randint(1, 4)
        sources = [random_source(rng, pair[0]) for _ in range(rows)]
        scorers = [large.start(sources)]
        scorers.append(small.beside(scorers[0], sources))
        texts = [random_tokens(rng, 4) for _ in sources]
        for at in (0, 2):
            for network, scorer in zip(pair, scorers, strict=True):
                found = scorer.extend([text[at : at + 2] for text in texts], last=2)
                for source, text, row in zip(sources, texts, found, strict=True):
                    expected = forward(network, source, text[: at + 2])[-2:]
                    torch.testing.assert_close(row, expected, **close)


@every_runtime
def test_rows_that_are_kept_and_joined_keep_their_sources(name, runtime):
    rng, pair = Random(1), networks(name, runtime)
    large, small = shared_models(name, runtime)
    close = {"rtol": 0.0, "atol": 1e-4 if runtime == "static" else 1e-9}
    sources = [random_source(rng, pair[0]) for _ in range(5)]
    texts = [random_tokens(rng, 4) for _ in sources]

    def begin(rows):
        first = large.start([sources[b] for b in rows])
        return first, small.beside(first, [sources[b] for b in rows])

    one, other = begin([0, 1, 2]), begin([3, 4])
    # Of the first batch the small model alone has read; of the second nobody.
    one[1].extend([text[:2] for text in texts[:3]])
    order = [2, 0]
    for scorer, joining in zip(one, other, strict=True):
        scorer.keep(order)
        scorer.join(joining)
    rows = [*order, 3, 4]
    for network, scorer in zip(pair, one, strict=True):
        unread = [texts[b][length:] for b, length in zip(rows, scorer.lengths, strict=True)]
        found = scorer.extend(unread)
        for b, row in zip(rows, found, strict=True):
            torch.testing.assert_close(row[-1], forward(network, sources[b], texts[b])[-1], **close)


@every_runtime
def test_a_source_is_encoded_once(name, runtime, monkeypatch):
    large, small = shared_models(name, runtime)
    counts = encoded_by(large, monkeypatch)
    sources = [[5, 6, 7], [8, 9]]
    scorer = large.start(sources)
    beside = small.beside(scorer, sources)
    assert not counts
    for each in (beside, scorer, beside):
        each.extend([[0], [0]])
    assert sum(counts) in (1, len(sources)) and len(counts) == 1


@every_runtime
def test_the_small_model_alone(name, runtime):
    _, network = networks(name, runtime)
    _, small = shared_models(name, runtime)
    found = small.start([[5, 6, 7]]).extend([[0, 4, 9]], 3)[0]
    expected = forward(network, [5, 6, 7], [0, 4, 9])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4 if runtime == "static" else 1e-9)


@every_runtime
@pytest.mark.parametrize("policy", ["bild", "exact"])
def test_texts_are_those_of_two_encoders(name, runtime, policy):
    large, small = networks(name, runtime)
    rng = Random(2)
    sources = [random_source(rng, large) for _ in range(6)]
    texts = []
    for encodes_once in (True, False):
        with patch("bild.models.pairing.have_one_encoder", lambda *_, answer=encodes_once: answer):
            models = models_of(large, small, runtime if encodes_once else "eager")
        with patch("bild.generation.decoder.run_pair", lambda *_, made=models: made):
            pair = BigLittleDecoder(large, small)
        texts.append([each.token_ids for each in pair.generate(sources, policy, max_new_tokens=12, batch_size=3)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("name", "runtime", "side"),
    [
        ("t5", "eager", 0),
        ("t5", "eager", 1),
        ("t5", "recorded", 0),
        ("t5", "recorded", 1),
        *(pytest.param("t5", "static", side, marks=[pytest.mark.compiles, pytest.mark.thorough]) for side in (0, 1)),
    ],
)
def test_encoders_that_part_are_read_apart(name, runtime, side):
    pair = copy.deepcopy(networks(name, runtime))
    with as_run(runtime):
        models = run_pair(*pair, "eager" if runtime == "eager" else "static")
        with torch.no_grad():
            next(iter(encoder_of(pair[side]).block.parameters()))[0] += 0.5
        large = models[0].start([[5, 6, 7]])
        small = models[1].beside(large, [[5, 6, 7]])
    for network, scorer in zip(pair, (large, small), strict=True):
        expected = forward(network, [5, 6, 7], [0, 4])[-1:]
        found = scorer.extend([[0, 4]])[0]
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4 if runtime == "static" else 1e-9)


def test_info_tells(capsys):
    large, small = networks("t5")
    pair = BigLittleDecoder(large, small, runtime="eager")
    facts = describe(pair)
    assert facts["one_encoder"]
    _print_table(facts)
    assert "one encoder: a source is read once, for both" in capsys.readouterr().out


def test_a_copy_of_the_models_shares_too():
    large, small = pickle.loads(pickle.dumps(shared_models("t5", "eager")))
    assert isinstance(small, EagerBorrower)
    scorer = large.start([[5, 6, 7]])
    found = small.beside(scorer, [[5, 6, 7]]).extend([[0, 4]])[0, -1]
    torch.testing.assert_close(found, forward(networks("t5")[1], [5, 6, 7], [0, 4])[-1], rtol=0.0, atol=1e-9)


def test_what_counts_as_one_encoder():
    large, small = networks("t5")
    assert have_one_encoder(large, small) and have_one_encoder(small, large)
    assert not have_one_encoder(large, build("t5", seed=5))
    assert not have_one_encoder(large, networks("bart")[1])
    assert not have_one_encoder(build("llama"), build("llama"))
    changed = copy.deepcopy(small)
    with torch.no_grad():
        next(iter(encoder_of(changed).block.parameters()))[0, 0] += 0.1
    assert not have_one_encoder(large, changed)
    # The same numbers, computed with otherwise.
    other = copy.deepcopy(small)
    for module in encoder_of(other).modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.1
    assert not have_one_encoder(large, other)


def test_the_same_encoder_in_two_dtypes():
    large, small = (copy.deepcopy(network).bfloat16() for network in networks("t5"))
    # One to learn from, but none to read with.
    assert have_one_encoder(large, copy.deepcopy(small).float())
    assert isinstance(run_pair(large, small, "eager")[1], EagerBorrower)
    assert not isinstance(run_pair(large, small.float(), "eager")[1], EagerBorrower)


@pytest.mark.compiles
def test_is_prepared_once_all_graphs_are_there():
    large, small = networks("t5", "static")
    shared_models("t5", "static")
    assert is_pair_prepared(large, small)
    assert isinstance(run_pair(large, small, "auto")[0], CompiledLender)
    other = drafter_of(large)
    with torch.no_grad():
        decoder_of(other).final_layer_norm.weight[0] += 1
    assert not is_pair_prepared(large, other)
    assert isinstance(run_pair(large, other, "auto")[1], EagerBorrower)


@every_runtime
def test_the_small_one_drafts_for_a_beam_search_by_itself(name, runtime):
    """Its hypotheses are not the large one's, so it cannot look sources up where the large one keeps them."""
    rng, (large, small) = Random(2), networks(name, runtime)
    with as_run(runtime):
        pair = BigLittleDecoder(large, small, runtime="eager" if runtime == "eager" else "static")
    sources = [random_source(rng, large) for _ in range(5)]
    options = {"num_beams": 3, "max_new_tokens": 10, "batch_size": 2}
    plain, drafted = pair.generate(sources, "large", **options), pair.generate(sources, "exact", **options)
    assert [result.token_ids for result in drafted] == [result.token_ids for result in plain]
    assert sum(result.stats.num_draft_tokens for result in drafted) > 0
