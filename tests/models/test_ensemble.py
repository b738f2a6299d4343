"""Models that score as one, against passes without any cache."""

from __future__ import annotations

from random import Random

import pytest
import torch

from bild import BigLittleDecoder, InputError, VocabularyError
from bild.generation.ensembles import Ensemble, parse_ensemble
from bild.models import EagerModel, EnsembleModel, OtherSource
from tests.networks import EOS, VOCAB_SIZE, build, forward, perturbed, random_source, random_tokens

WEIGHT = 0.7


def parts(name: str):
    base = build(name)
    return base, perturbed(base, 0.3, seed=1), perturbed(base, 0.3, seed=2)


def steered(networks, source, tokens) -> torch.Tensor:
    base, plus, minus = (forward(network, source, tokens) for network in networks)
    return base + WEIGHT * (plus - minus)


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize("seed", range(3))
def test_reads_forgets_keeps_and_joins_as_a_scorer_must(name, seed):
    rng, networks = Random(seed), parts(name)
    base, plus, minus = map(EagerModel, networks)
    model = EnsembleModel(base, [(plus, WEIGHT), (minus, -WEIGHT)])
    sources = [random_source(rng, networks[0]) for _ in range(3)]
    scorer, texts = model.start(sources[:2]), [[], []]
    for step in range(14):
        new = [random_tokens(rng, rng.randint(0, 3)) for _ in texts]
        new[0] = new[0] or [5]
        last = max(map(len, new))
        logits = scorer.extend(new, last)
        for b, more in enumerate(new):
            texts[b] += more
            if more:
                expected = steered(networks, sources[b], texts[b])[-len(more) :]
                torch.testing.assert_close(logits[b, -len(more) :], expected, rtol=0, atol=1e-9)
        lengths = [rng.randint(0, len(text) + 1) for text in texts]
        scorer.truncate(lengths)
        texts = [text[:length] for text, length in zip(texts, lengths, strict=True)]
        assert scorer.lengths == [len(text) for text in texts]
        if step == 5:
            scorer.keep([1, 0, 1])
            sources, texts = [sources[1], sources[0], sources[1], sources[2]], [texts[1], texts[0], list(texts[1]), []]
            scorer.join(model.start(sources[3:]))


def test_a_weight_of_nothing_is_the_base_to_the_bit_and_costs_no_pass():
    base, plus, _ = map(EagerModel, parts("llama"))
    scorer = EnsembleModel(base, [(plus, 0.0)]).start([[]])
    assert torch.equal(scorer.extend([[5, 6]], 2), base.start([[]]).extend([[5, 6]], 2)) and scorer.others == []


def test_what_the_base_forbids_stays_forbidden():
    from bild.models import EnsembleScorer

    class Fixed:
        def __init__(self, logits):
            self.logits = torch.tensor([[logits]])

        def extend(self, tokens, last=1):
            return self.logits

    none = float("-inf")
    scorer = EnsembleScorer(Fixed([1.0, none, none]), [(Fixed([2.0, 1.0, none]), 1.0), (Fixed([1.0, 0.0, none]), -1.0)])
    assert scorer.extend([[1]]).tolist() == [[[2.0, none, none]]]


def test_guidance_moves_away_from_what_is_said_without_a_source():
    network = build("t5")
    base = EagerModel(network)
    model = EnsembleModel(base, [(base, 0.5), (OtherSource(base, [EOS]), -0.5)])
    scorer, source = model.start([[5, 6, 7]]), [5, 6, 7]
    expected = 1.5 * forward(network, source, [0, 9]) - 0.5 * forward(network, [EOS], [0, 9])
    torch.testing.assert_close(scorer.extend([[0, 9]], 2)[0], expected, rtol=0, atol=1e-9)
    # The base among the others needs no pass of its own.
    assert len(scorer.others) == 1 and scorer.own == 1.5


@pytest.mark.parametrize("name", ["t5", "bart", "llama", "gpt2"])
def test_an_unsteered_drafter_does_not_change_a_steered_text(name):
    """Lossless against the ensemble: its greedy text step by step, whoever drafts."""
    networks = parts(name)
    base, plus, minus = networks
    experts = [(plus, WEIGHT), (minus, -WEIGHT)]
    decoder = BigLittleDecoder(base, perturbed(base, 0.1, seed=3), experts=experts)
    inputs = [[5, 6, 7, 5], [9, 4], [7, 3, 8, 7]]
    found = decoder.generate(inputs, "exact:fallback_threshold=0.1", batch_size=3, max_new_tokens=10)
    plain = decoder.generate(inputs, "large", max_new_tokens=10)
    assert [result.token_ids for result in found] == [result.token_ids for result in plain]
    assert "small" in {writer for result in found for writer in result.writers}
    unsteered = BigLittleDecoder(base, drafter="ngram").generate(inputs, "large", max_new_tokens=10)
    assert [result.token_ids for result in plain] != [result.token_ids for result in unsteered]
    if name == "llama":
        written = list(inputs[0])
        for token in plain[0].token_ids:
            assert token == int(steered(networks, [], written)[-1].argmax())
            written.append(token)


def test_is_read_as_it_is_written():
    assert parse_ensemble("some/model:sub") == Ensemble("some/model:sub")
    both = parse_ensemble("ensemble:base=a,plus=b,minus=c,weight=0.25")
    assert both == Ensemble("a", (("b", 0.25), ("c", -0.25)))
    assert parse_ensemble("ensemble:plus=b,base=a") == Ensemble("a", (("b", 0.5), ("a", -0.5)))
    assert parse_ensemble("ensemble:base=a,minus=c,weight=2") == Ensemble("a", (("a", 2.0), ("c", -2.0)))
    assert parse_ensemble("ensemble:base=a,guidance=1.5") == Ensemble("a", (("a", 0.5), ("unconditioned", -0.5)))
    for text, says in (
        ("ensemble:", "is not one of its parts"),
        ("ensemble:base=a", "nothing that steers"),
        ("ensemble:plus=a", "names no base"),
        ("ensemble:base=a,base=b", "is not one of its parts"),
        ("ensemble:base=a,plus=b,weight=x", "weight is 'x'; allowed is any number"),
        ("ensemble:base=a,plus=b,weight=nan", "weight is 'nan'"),
        ("ensemble:base=a,plus=b,guidance=2", "nothing that steers"),
    ):
        with pytest.raises(InputError, match=says):
            parse_ensemble(text)


def test_from_the_disk_by_name(tmp_path):
    networks = parts("t5")
    for name, network in zip(("a", "b", "c"), networks, strict=True):
        network.save_pretrained(tmp_path / name)
    large = f"ensemble:base={tmp_path / 'a'},plus={tmp_path / 'b'},minus={tmp_path / 'c'},weight={WEIGHT}"
    options = {"drafter": "ngram", "dtype": "float64", "runtime": "eager"}
    loaded = BigLittleDecoder.from_pretrained(large=large, **options)
    made = BigLittleDecoder(networks[0], drafter="ngram", experts=[(networks[1], WEIGHT), (networks[2], -WEIGHT)])
    texts = [d.generate([[5, 6, 7]], "exact", max_new_tokens=12)[0].token_ids for d in (loaded, made)]
    assert texts[0] == texts[1]
    guided = BigLittleDecoder.from_pretrained(large=f"ensemble:base={tmp_path / 'a'},guidance=3", **options)
    assert guided.generate([[5, 6, 7]], "exact", max_new_tokens=12)[0].token_ids
    with pytest.raises(InputError, match="the large model is an ensemble"):
        loaded.save_pretrained(tmp_path / "d")


def test_what_cannot_steer_is_one_line():
    base = build("llama")
    for error, says, experts in (
        (VocabularyError, "rows", [(build("llama", vocab_size=VOCAB_SIZE + 1), 1.0)]),
        (InputError, "an expert's weight is nan", [(base, float("nan"))]),
        (InputError, "a decoder-only model has none", [("unconditioned", 1.0)]),
        (InputError, "an expert is 'formal'; give a network", [("formal", 1.0)]),
    ):
        with pytest.raises(error, match=says):
            BigLittleDecoder(base, drafter="ngram", experts=experts)
