"""Streams of pieces: multi-byte characters, sentencepiece spaces, tokenizers that clean up."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bild.generation.text import TextStream, decode, pieces


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """One token a byte, as a byte-level BPE does with rare characters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def cleaning() -> PreTrainedTokenizerFast:
    """Joins "word ." to "word." when it decodes."""
    words = {word: id for id, word in enumerate(["I", "do", "n't", "know", ".", ",", "why"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="I"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)


def streamed(tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.add([id]) for id in ids), stream.end()]


def test_a_character_waits_for_its_last_byte(bytewise):
    ids = bytewise("aß€😀b").input_ids
    assert len(ids) == 1 + 2 + 3 + 4 + 1
    assert streamed(bytewise, ids) == ["a", "", "ß", "", "", "€", "", "", "", "😀", "b", ""]


def test_an_incomplete_character_comes_at_the_end_as_the_tokenizer_shows_it(bytewise):
    ids = bytewise("a😀").input_ids[:-1]
    assert "".join(streamed(bytewise, ids)) == decode(bytewise, ids) != "a"


def test_a_tokenizer_that_cleans_up_never_takes_text_back(cleaning):
    ids = cleaning("I do n't know , why .").input_ids
    assert "".join(streamed(cleaning, ids)) == decode(cleaning, ids)


def test_pieces_of_sentencepiece_join_to_the_text(bundled, sentences):
    for text in sentences[:8]:
        ids = bundled.tokenizer(text).input_ids
        shown = pieces(bundled.tokenizer, ids)
        assert "".join(shown[:-1]) == decode(bundled.tokenizer, ids) and shown[-1] == "</s>"
        assert (
            "".join(pieces(bundled.tokenizer, ids[2:-1], ids[:2]))
            == decode(bundled.tokenizer, ids)[len(decode(bundled.tokenizer, ids[:2])) :]
        )


def test_without_a_tokenizer_pieces_are_numbers():
    assert pieces(None, [5, 17]) == ["5", "17"] and decode(None, [5]) == ""
