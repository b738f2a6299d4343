"""Streams and pieces: they join to the text for every kind of tokenizer, in linear time."""

from __future__ import annotations

import gc
import random
import weakref
from itertools import accumulate

import pytest

from bild.generation.text import TextStream, Vocabulary, cleans, decode, pieces, shown
from bild.generation.token_stream import TokenStream
from tests.generation import tokenizers


@pytest.fixture(scope="module", params=tokenizers.KINDS)
def kind(request):
    return tokenizers.KINDS[request.param]()


@pytest.fixture(scope="module")
def bytewise():
    return tokenizers.bytewise()


def streamed(tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.add([id]) for id in ids), stream.end()]


def texts_of(tokenizer, count: int) -> list[list[int]]:
    """Texts drawn at random: even, of few tokens over and over, and of one token."""
    draw = random.Random(3)
    size = len(tokenizer) + 2  # a model's head is often wider than the vocabulary
    pools = [range(size), range(0, size, 7), *([id] for id in range(0, size, 11))]
    return [[draw.choice(draw.choice(pools)) for _ in range(draw.randrange(1, 40))] for _ in range(count)] + [
        [draw.choice(pool)] * 60 for pool in pools
    ]


def test_streams_and_pieces_join_to_the_text(kind):
    special = set(kind.all_special_ids)
    for ids in texts_of(kind, 150):
        text = decode(kind, ids)
        assert "".join(streamed(kind, ids)) == text
        shown = pieces(kind, ids)
        assert "".join(piece for id, piece in zip(ids, shown, strict=True) if id not in special) == text
        named = [piece for id, piece in zip(ids, shown, strict=True) if id in special]
        assert named == [kind.convert_ids_to_tokens(id) for id in ids if id in special]


def test_texts_of_streamed_tokens_join_to_the_text_one_a_token(kind):
    for ids in texts_of(kind, 60):
        stream = TokenStream(kind)
        ready = [stream.add([id]) for id in ids]
        texts = [*(text for each in ready for text in each), *stream.end()]
        assert len(texts) == len(ids) and "".join(text for text, _ in texts) == decode(kind, ids)
        assert [special for _, special in texts] == [Vocabulary.of(kind).is_silent(id) for id in ids]
        assert all(text == "" for text, special in texts if special)
        # Handed out early, or cut elsewhere: the same texts.
        again = TokenStream(kind)
        assert [*again.add(ids), *again.end()] == texts


def test_what_was_streamed_never_changes(kind):
    for ids in texts_of(kind, 40):
        for seen in accumulate(streamed(kind, ids)):
            assert decode(kind, ids).startswith(seen)


def test_pieces_after_others_go_on_from_them(kind):
    for ids in texts_of(kind, 30)[:30]:
        for cut in range(0, len(ids), 5):
            before, whole = decode(kind, ids[:cut]), decode(kind, ids)
            after = zip(ids[cut:], pieces(kind, ids[cut:], ids[:cut]), strict=True)
            loud = "".join(piece for id, piece in after if id not in kind.all_special_ids)
            # Where the cut is inside a character or before a space that goes, the text before ends otherwise.
            if whole.startswith(before) and not before.endswith("\ufffd"):
                assert loud == whole[len(before) :]


def test_a_character_waits_for_its_last_byte(bytewise):
    ids = bytewise("aß€😀b").input_ids
    assert len(ids) == 1 + 2 + 3 + 4 + 1
    assert streamed(bytewise, ids) == ["a", "", "ß", "", "", "€", "", "", "", "😀", "b", ""]
    assert pieces(bytewise, ids) == ["a", "", "ß", "", "", "€", "", "", "", "😀", "b"]


def test_an_incomplete_character_comes_at_the_end_as_the_tokenizer_shows_it(bytewise):
    ids = bytewise("a😀").input_ids[:-1]
    assert streamed(bytewise, ids) == ["a", "", "", "", "\ufffd"] and decode(bytewise, ids) == "a\ufffd"


def test_byte_tokens_side_by_side_are_decoded_together():
    tokenizer = tokenizers.byte_fallback()
    ids = [1 + byte for byte in "日本".encode()]
    b = tokenizer.convert_tokens_to_ids("b")
    assert streamed(tokenizer, [*ids, b]) == [""] * 6 + ["日本b", ""]
    assert pieces(tokenizer, [*ids, b]) == ["", "", "日", "", "", "本", "b"]
    # One byte is missing: all become replacement characters, so none may have been shown before.
    assert "".join(streamed(tokenizer, [*ids[:-1], b])) == decode(tokenizer, [*ids[:-1], b]) == "\ufffd" * 5 + "b"


def test_a_token_is_shown_as_it_stands_behind_another():
    tokenizer = tokenizers.cleaning()
    ids = tokenizer("do n't").input_ids
    assert [shown(tokenizer, id) for id in ids] == [" do", " n't"]
    bytewise = tokenizers.bytewise()
    assert [shown(bytewise, id) for id in bytewise("a b").input_ids] == ["a", " ", "b"]
    assert shown(bytewise, bytewise.eos_token_id) == bytewise.eos_token and shown(None, 7) == "7"


def test_texts_of_tokens_come_as_soon_as_they_are_known(bytewise):
    stream = TokenStream(bytewise)
    ids = bytewise("aß").input_ids
    assert [[text for text, _ in stream.add([id])] for id in ids] == [["a"], [], ["", "ß"]]
    assert stream.add([bytewise.eos_token_id]) == [("", True)]


def test_pieces_of_cleaned_text_are_those_of_their_own_tokens():
    tokenizer = tokenizers.cleaning()
    ids = tokenizer("I do n't know , why ' x .").input_ids
    assert decode(tokenizer, ids) == "I don't know, why'x."
    assert pieces(tokenizer, ids) == ["I", " do", "n't", " know", ",", " why", "'", "x", "."]


def test_bpe_is_not_cleaned_and_streams_without_waiting_for_a_space(bytewise):
    bytewise.clean_up_tokenization_spaces = True
    try:
        ids = bytewise("no . no").input_ids
        assert cleans(bytewise) == (decode(bytewise, ids) != "no . no")
        assert "".join(streamed(bytewise, ids)) == decode(bytewise, ids)
    finally:
        bytewise.clean_up_tokenization_spaces = False


@pytest.mark.parametrize("loop", ["letters", "broken bytes", "special tokens", "ids without a token", "spaces"])
def test_time_is_linear_in_the_tokens(bytewise, monkeypatch, loop):
    ids = {
        "letters": bytewise("ab").input_ids,
        "broken bytes": bytewise("日").input_ids[1:2],
        "special tokens": [bytewise.eos_token_id],
        "ids without a token": [len(bytewise) + 1],
        "spaces": bytewise(" ").input_ids,
    }[loop]
    text, read, decode_all = [*bytewise("a").input_ids, *(ids * (1000 // len(ids)))], [], bytewise.decode
    monkeypatch.setattr(
        bytewise, "decode", lambda ids, **options: (read.append(len(ids)), decode_all(ids, **options))[1]
    )
    shown = "".join(streamed(bytewise, text))
    # Broken bytes wait for one another, and so does context of spaces alone; anything else is read about ten times.
    assert sum(read) < (30_000 if loop in ("broken bytes", "spaces") else 12_000)
    assert shown == decode_all(text, skip_special_tokens=True)
    read.clear()
    pieces(bytewise, text)
    assert sum(read) < 40_000


def test_pieces_of_sentencepiece_join_to_the_text(bundled, sentences):
    for text in sentences[:8]:
        ids = bundled.tokenizer(text).input_ids
        shown = pieces(bundled.tokenizer, ids)
        assert "".join(shown[:-1]) == decode(bundled.tokenizer, ids) and shown[-1] == "</s>"
        before = decode(bundled.tokenizer, ids[:2])
        rest = "".join(pieces(bundled.tokenizer, ids[2:-1], ids[:2]))
        assert before + rest == decode(bundled.tokenizer, ids)


def test_a_tokenizer_is_looked_at_again_when_its_special_tokens_change_and_is_not_kept_alive():
    tokenizer = tokenizers.bytewise()
    known = Vocabulary.of(tokenizer)
    assert Vocabulary.of(tokenizer) is known and not known.is_silent(5)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    new = Vocabulary.of(tokenizer)
    assert new is not known and new.is_silent(tokenizer.convert_tokens_to_ids("<|end|>"))
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None


def test_without_a_tokenizer_pieces_are_numbers():
    assert pieces(None, [5, 17]) == ["5", "17"] and decode(None, [5]) == ""
    stream = TextStream(None)
    assert (stream.add([5]), stream.end()) == ("", "")
