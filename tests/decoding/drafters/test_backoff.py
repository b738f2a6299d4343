"""Counts of n-grams as a drafter, by value."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bild import InputError
from bild.decoding import Backoff, Kit, Ngrams, Policy, parse_drafter
from bild.decoding.drafters.backoff import NgramScorer
from tests.decoding.test_sampling import chi_square_p, expected_texts, texts_of
from tests.toy import ToyModel

TEXTS = [[0, 1, 2, 1, 2], [0, 1, 3, 1, 2]]


def test_probabilities_by_hand():
    ngrams = Ngrams(5, order=3, discount=0.5).add(TEXTS)
    # Behind nothing: 1 four times, 2 three times, 3 once; a fifth of what they give away goes to each of 5 tokens,
    # of which those not seen (0 and 4) get it all.
    single = [0.75 / 4 * 0 + 1.5 / 8 / 2, 3.5 / 8, 2.5 / 8, 0.5 / 8, 1.5 / 8 / 2]
    assert ngrams.probabilities([]).tolist() == pytest.approx(single)
    # Behind 1: 2 three times, 3 once.
    rest = 1 - single[2] - single[3]
    pair = [single[0] * 0.25 / rest, single[1] * 0.25 / rest, 2.5 / 4, 0.5 / 4, single[4] * 0.25 / rest]
    assert ngrams.probabilities([1]).tolist() == pytest.approx(pair)
    # Behind 0 1: 2 and 3 once each.
    rest = 1 - pair[2] - pair[3]
    assert ngrams.probabilities([4, 0, 1]).tolist() == pytest.approx(
        [pair[0] * 0.5 / rest, pair[1] * 0.5 / rest, 0.25, 0.25, pair[4] * 0.5 / rest]
    )
    # A context that nobody has seen is shortened.
    assert ngrams.probabilities([4, 1]).tolist() == pytest.approx(pair)
    assert ngrams.probabilities([4]).tolist() == pytest.approx(single)


def test_every_context_has_a_distribution_without_zeros():
    numbers = torch.Generator().manual_seed(0)
    texts = torch.randint(4, (40, 12), generator=numbers).tolist()
    for order in (1, 2, 3, 5):
        ngrams = Ngrams(4, order).add(texts)
        for context in [[], [1], [1, 2], [3, 3, 3], [0, 1, 2, 3, 0]]:
            p = ngrams.probabilities(context)
            assert float(p.sum()) == pytest.approx(1, abs=1e-5) and float(p.min()) > 0
    # Where all tokens were seen, nothing is given away.
    assert Ngrams(2).add([[0, 0, 1, 0, 1, 1, 0]]).probabilities([]).tolist() == pytest.approx([0.5, 0.5])
    assert Ngrams(3).probabilities([1, 2]).tolist() == pytest.approx([1 / 3] * 3)


def test_in_pieces_rolled_back_and_joined_is_as_never_read():
    ngrams = Ngrams(5).add(TEXTS)
    one, other = NgramScorer(ngrams, 2), NgramScorer(ngrams, 1)
    whole = one.extend([[0, 1, 2, 1], [3, 1]], last=3)
    for token in (0, 4, 4):
        other.extend([[token]])
    other.truncate([1])
    pieces = [other.extend([[token]])[0, -1] for token in (1, 2, 1)]
    assert torch.equal(whole[0], torch.stack(pieces)) and other.lengths == [4]
    one.keep([1, 1, 0])
    one.join(other)
    assert one.lengths == [2, 2, 4, 4]
    after = one.extend([[1], [1], [], [3]])
    assert torch.equal(after[0], after[1]) and torch.equal(after[3, 0], ngrams.probabilities([1, 3]).log())


def test_counts_survive_their_file(tmp_path):
    ngrams, file = Ngrams(5, 3, 0.4).add(TEXTS), tmp_path / "deep" / "ngrams.safetensors"
    ngrams.save(file)
    loaded = Ngrams.load(file)
    assert (loaded.vocab_size, loaded.order, loaded.discount) == (5, 3, 0.4) and Ngrams.load(file) is loaded
    for context in ([], [1], [0, 1], [2, 1], [4, 4]):
        assert torch.equal(loaded.probabilities(context), ngrams.probabilities(context))
    recipe = parse_drafter(f"first:ngram,backoff:file={file}")
    assert not recipe.needs_small and str(recipe) == f"first:ngram,backoff:file={file}"
    with pytest.raises(InputError, match="counts a vocabulary of 5 tokens, these models share 7"):
        recipe(Kit(lambda: None, 7))


def test_what_are_no_counts_is_one_line(tmp_path):
    text, other = tmp_path / "a", tmp_path / "b"
    text.write_text("no tensors")
    save_file({"0": torch.zeros(1)}, str(other))
    for file, says in (
        (text, "is no safetensors file"),
        (other, "holds no n-gram counts"),
        (tmp_path, "no safetensors"),
    ):
        with pytest.raises(InputError, match=says) as raised:
            Ngrams.load(file)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options", [(0,), (5, 0), (5, 6), (5, 3, 0.0), (5, 3, 1.0)])
def test_values_out_of_range(options):
    with pytest.raises(ValueError, match="allowed is"):
        Ngrams(*options)


def test_rejection_sampling_of_what_was_counted_has_the_large_models_distribution():
    large, draws, length = ToyModel(5, 3), 2500, 3
    ngrams = Ngrams(3).add([[0, 1, 2, 0, 1, 1], [0, 0, 2, 1, 2, 0]])
    seen = texts_of(Policy.speculative_sampling(window=2), Backoff(ngrams, draws), large, draws, length)
    assert chi_square_p(seen, expected_texts(large, lambda logits: logits, length, draws)) > 0.01

    class Counted(ToyModel):
        def logits(self, prefix):
            return ngrams.probabilities(prefix).log().double()

    assert chi_square_p(seen, expected_texts(Counted(0, 3), lambda logits: logits, length, draws)) < 1e-6
