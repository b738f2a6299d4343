"""Whether two checkpoints share a vocabulary, and are of one kind."""

from __future__ import annotations

import pytest

from bild import BigLittleDecoder, LoadError, VocabularyError
from bild.models import check_shared_vocabulary
from tests.networks import VOCAB_SIZE, build, shared, word_tokenizer

WORDS = ["<pad>", "</s>", *(f"w{id}" for id in range(2, VOCAB_SIZE))]


@pytest.mark.parametrize(
    ("large", "small", "message"),
    [
        ("t5", "gpt2", "the large model is encoder-decoder and the small one decoder-only"),
        ("llama", "bart", "the large model is decoder-only and the small one encoder-decoder"),
    ],
)
def test_two_kinds_of_model(large, small, message):
    with pytest.raises(LoadError, match=message):
        BigLittleDecoder(shared(large), shared(small))


def test_two_devices():
    with pytest.raises(LoadError, match=r"has weights that are not in memory .* on one device"):
        BigLittleDecoder(shared("gpt2"), build("gpt2", seed=1).to("meta"))


def test_heads_of_different_size_without_tokenizers():
    wide = build("gpt2", vocab_size=VOCAB_SIZE + 8)
    with pytest.raises(VocabularyError, match="heads have 48 and 40 rows"):
        BigLittleDecoder(wide, shared("gpt2"))
    with pytest.raises(VocabularyError, match="there are not two tokenizers"):
        BigLittleDecoder(wide, shared("gpt2"), word_tokenizer())
    assert check_shared_vocabulary(None, word_tokenizer(), 40, 40) == 40


@pytest.mark.parametrize(("large", "small"), [(40, 48), (48, 40), (64, 48), (40, 40)])
def test_the_same_pieces_under_differently_padded_heads(large, small):
    assert check_shared_vocabulary(word_tokenizer(), word_tokenizer(), large, small) == min(large, small)


@pytest.mark.parametrize("sizes", [(64, 32), (32, 64)])
def test_pieces_of_the_tokenizer_that_one_head_lacks(sizes):
    """Of padding nothing is lost, of a piece the large model's own text may be."""
    message = vocabulary_error(WORDS, WORDS, sizes)
    assert f"the heads have {sizes[0]} (large) and {sizes[1]} (small) rows" in message and "id 39 ('w39')" in message
    # What neither head has nobody can write.
    assert check_shared_vocabulary(word_tokenizer(), word_tokenizer(), 32, 32) == 32


def test_a_pair_scores_only_the_shared_vocabulary():
    tokenizer = word_tokenizer()
    pair = BigLittleDecoder(
        build("t5", vocab_size=64), build("t5", seed=1, vocab_size=48), tokenizer, small_tokenizer=tokenizer
    )
    assert (pair.large.vocab_size, pair.small.vocab_size) == (48, 48)
    for model in (pair.large, pair.small):
        assert model.start([[5, 6]]).extend([[0]]).shape == (1, 1, 48)


def vocabulary_error(large: list[str], small: list[str], sizes: tuple[int, int]) -> str:
    with pytest.raises(VocabularyError) as caught:
        check_shared_vocabulary(word_tokenizer(large), word_tokenizer(small), *sizes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_different_pieces_under_one_id():
    swapped = [*WORDS[:7], "w9", "w8", "w7", *WORDS[10:]]
    message = vocabulary_error(WORDS, swapped, (40, 40))
    assert "differ in 2 ids" in message and "7: 'w7' / 'w9'; 9: 'w9' / 'w7'" in message


def test_only_the_first_differing_ids_are_named():
    other = [*WORDS[:30], *(f"v{id}" for id in range(30, 40))]
    message = vocabulary_error(other, WORDS, (48, 48))
    assert "differ in 10 ids" in message and "30: 'v30' / 'w30'; 31: 'v31' / 'w31'; 32: 'v32' / 'w32';" in message
    assert "33: " not in message


@pytest.mark.parametrize("turned", [False, True])
def test_pieces_beyond_the_shorter_head(turned):
    pieces, sizes = ([*WORDS, "extra", "more"], WORDS), (42, 40)
    message = vocabulary_error(*(pieces[::-1] if turned else pieces), sizes[::-1] if turned else sizes)
    counts = "40 (large) and 42 (small)" if turned else "42 (large) and 40 (small)"
    assert counts in message and "id 40 ('extra') exists in one only" in message


def test_pieces_of_one_tokenizer_that_both_heads_hold():
    """T5 and Qwen bring unnamed rows: a name for one of them in one tokenizer alone does no harm."""
    assert check_shared_vocabulary(word_tokenizer([*WORDS, "extra"]), word_tokenizer(WORDS), 48, 44) == 44
