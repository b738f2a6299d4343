"""What is trained on, and the count of what is not."""

from __future__ import annotations

import pytest

from bild.data import Data, Example
from bild.errors import InputError
from bild.training import corpus as corpus_module
from bild.training.corpus import Coder, Corpus, TrainingText, pairs_of
from tests.networks import EOS, build, word_tokenizer

T5, GPT2 = build("t5").config, build("gpt2").config
ROWS = [
    ("1", "w2 w3", ("w4",)),
    ("2", "w2 w3", ("w4", "w5 w6 w7")),
    ("3", "w2 w3 w4 w5", ("w4",)),
    ("4", "w8", ()),
    ("5", "w9", ("w5 w6 w7 w8 w9",)),
    ("6", "w2 w3", ("w4",)),
]


def corpus_of(coder: Coder, rows=ROWS, skipped=()) -> Corpus:
    corpus = Corpus()
    sets = {"a": Data("a", [Example(*row) for row in rows], list(skipped))}
    coder.encode(pairs_of(sets, corpus), corpus)
    return corpus


def lists(arrays) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def test_counts_what_is_left_out():
    coder = Coder(word_tokenizer(), T5, max_source_tokens=3, max_target_tokens=4)
    corpus = corpus_of(coder, skipped=["line 7: not JSON", "line 9: not JSON"])
    assert lists(corpus.sources) == [[2, 3], [2, 3]]
    assert lists(corpus.targets) == [[4, EOS], [5, 6, 7, EOS]]
    assert corpus.places == ["a line 1", "a line 2"]
    assert corpus.left_out == {
        "not JSON": 2,
        "duplicate": 2,
        "source longer than 3 tokens": 1,
        "no target text": 1,
        "target longer than 4 tokens": 1,
    }
    assert corpus.describe().startswith("2 of 9 examples; left out: 2 not JSON (first: a line 7), ")
    assert "2 duplicate (first: a line 2)" in corpus.describe()
    assert corpus.facts()["used"] == 2 and corpus.facts()["left_out"]["duplicate"] == 2


def test_a_decoder_only_network_places_source_and_target_together():
    config = build("gpt2", n_positions=6).config
    corpus = corpus_of(Coder(word_tokenizer(), config))
    assert lists(corpus.targets) == [[4, EOS], [5, 6, 7, EOS], [4, EOS]]
    assert corpus.left_out == {"duplicate": 2, "longer than 6 tokens together": 1, "no target text": 1}


def test_the_tokenizers_own_limit_counts_too():
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 3
    assert len(corpus_of(Coder(tokenizer, T5))) == 1
    assert len(corpus_of(Coder(word_tokenizer(), T5))) == 4


def test_token_ids_are_taken_as_they_are():
    corpus = Corpus()
    Coder(word_tokenizer(), GPT2).encode(
        [TrainingText("x", "w2", [5, 6]), TrainingText("y", "w2", [5, 6]), TrainingText("z", "w2", "w5")], corpus
    )
    assert (lists(corpus.targets), corpus.left_out) == ([[5, 6], [5, EOS]], {"duplicate": 1})


def test_the_prefix_is_part_of_the_source():
    corpus = corpus_of(Coder(word_tokenizer(), T5, prefix="w9 "), ROWS[:1])
    assert lists(corpus.sources) == [[9, 2, 3]]


def test_texts_must_be_able_to_end():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="names no end token"):
        corpus_of(Coder(tokenizer, T5))


def test_the_digest_is_of_the_tokens():
    coder = Coder(word_tokenizer(), T5)
    one, same, other = corpus_of(coder), corpus_of(coder), corpus_of(coder, ROWS[:2])
    assert one.digest == same.digest != other.digest
    assert corpus_of(coder, [("1", "w2", ("w3",))]).digest != corpus_of(coder, [("1", "w3", ("w2",))]).digest


def test_what_a_network_can_place_is_asked_once(monkeypatch):
    """Configurations take a tenth of a millisecond to answer, which was four fifths of the time of reading texts."""
    asked = []
    monkeypatch.setattr(corpus_module, "max_positions", lambda config: asked.append(config) or 512)
    corpus = corpus_of(Coder(word_tokenizer(), T5))
    assert len(corpus) == 4 and len(asked) == 1
