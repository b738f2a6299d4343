"""Inputs in every form that tokenizers return and people have; what cannot be used is named with its index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from bild import BigLittleDecoder, InputError
from bild.generation.inputs import as_list, of_input
from tests.generation import tokenizers
from tests.networks import build

ROWS = [[5, 6, 7], [8]]
RIGHT = ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
LEFT = ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
FORMS = {
    "lists": lambda rows: rows,
    "tuples": lambda rows: tuple(tuple(row) for row in rows),
    "array": np.array,
    "int32 array": lambda rows: np.array(rows, dtype=np.int32),
    "tensor": torch.tensor,
    "arrays": lambda rows: [np.array(row) for row in rows],
    "tensors": lambda rows: [torch.tensor(row) for row in rows],
    "numpy integers": lambda rows: [list(np.array(row)) for row in rows],
}
MASKS = FORMS | {
    "bools": lambda rows: [[bool(value) for value in row] for row in rows],
    "bool tensor": lambda rows: torch.tensor(rows).bool(),
    "float array": lambda rows: np.array(rows, dtype=float),
}


@pytest.mark.parametrize("padded", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", FORMS)
def test_padding_goes_whatever_the_form(form, mask, padded):
    ids, kept = FORMS[form](padded[0]), MASKS[mask](padded[1])
    assert as_list(ids, kept) == (ROWS, False)
    assert as_list({"input_ids": ids, "attention_mask": kept}) == (ROWS, False)
    assert as_list(BatchEncoding({"input_ids": ids, "attention_mask": kept})) == (ROWS, False)


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_a_mask_lose_their_padding_at_both_ends_alone(form):
    assert as_list(FORMS[form]([[0, 5, 0, 6], [7, 0, 0, 0]]), None, 0) == ([[5, 0, 6], [7]], False)
    assert as_list(FORMS[form]([[0, 5], [7, 0]])) == ([[0, 5], [7, 0]], False)
    assert as_list(FORMS[form]([[0, 5], [7, 0]]), np.ones((2, 2)), 0) == ([[0, 5], [7, 0]], False)


def test_rows_of_several_lengths_were_never_padded():
    assert as_list([[0, 5], [7]], None, 0) == ([[0, 5], [7]], False)


@pytest.mark.parametrize("one", [[5, 6], (5, 6), np.array([5, 6]), torch.tensor([5, 6]), list(np.array([5, 6]))])
def test_one_row(one):
    assert as_list(one) == ([[5, 6]], True)
    assert as_list(one, [1, 0]) == ([[5]], True)
    assert as_list({"input_ids": one, "attention_mask": [[0, 1]]}) == ([[6]], True)


def test_texts_and_conversations():
    turn = {"role": "user", "content": "a"}
    assert as_list("a") == (["a"], True) and as_list(("a", "b")) == (["a", "b"], False)
    assert as_list([turn]) == ([[turn]], True) and as_list([[turn], "b"]) == ([[turn], "b"], False)
    assert as_list(np.array(["a", "b"])) == (["a", "b"], False)
    assert as_list(each for each in ("a", "b")) == (["a", "b"], False) and as_list([]) == ([], False)


def test_rows_of_a_dataset():
    rows = [{"input_ids": [5, 0], "attention_mask": [1, 0]}, {"input_ids": torch.tensor([[6, 7]])}]
    assert as_list(rows) == ([[5], [6, 7]], False)
    with pytest.raises(InputError, match=r"input 1 \(counted from 0\): its input_ids hold 2 rows"):
        as_list([{"input_ids": [5]}, {"input_ids": [[5], [6]]}])


@pytest.mark.parametrize(
    ("inputs", "mask", "says"),
    [
        (1.5, None, "cannot decode a float"),
        (None, None, r"cannot decode a missing value \(None\)"),
        (b"abc", None, r"cannot decode bytes \(decode them first"),
        (memoryview(b"abc"), None, "cannot decode bytes"),
        ({5, 6}, None, "cannot decode a set"),
        (torch.tensor(5), None, "cannot decode a single number"),
        ({"role": "user", "content": "a"}, None, "a dict needs input_ids, this one has role, content"),
        ([[5, 6], [7, 8]], [[1, 1]], "attention_mask has 1 rows for 2 inputs"),
        ([[5, 6], [7]], [[1, 1], [1, 0]], r"input 1 \(counted from 0\): attention_mask has 2 places for 1 tokens"),
        ([[5, 6]], ["ab"], "attention_mask is a str|attention_mask holds something other than 0 and 1"),
        ("a text", [1], "attention_mask goes with token ids, and this is text"),
        (["a", "b"], [[1], [1]], "attention_mask goes with token ids, and this is text"),
        ([[5, 6]], 1, "attention_mask is an int"),
    ],
)
def test_what_cannot_be_used_is_one_line(inputs, mask, says):
    with pytest.raises(InputError, match=says) as raised:
        as_list(inputs, mask)
    assert "\n" not in str(raised.value)


def test_an_error_names_its_input_unless_it_is_the_only_one():
    with pytest.raises(InputError, match=r"^input 41 \(counted from 0\): it is wet$"), of_input(41, alone=False):
        raise InputError("it is wet")
    with pytest.raises(InputError, match=r"^it is wet$"), of_input(0, alone=True):
        raise InputError("it is wet")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (None, r"cannot decode a missing value \(None\)"),
        (float("nan"), r"cannot decode a missing value \(nan\)"),
        (2.5, "cannot decode a float"),
        (b"abc", "cannot decode bytes"),
        (" \n", "the text is empty"),
        ([], "the input holds no tokens"),
        ([5, 2.0], "cannot decode a float among token ids"),
        ([5, "6"], "cannot decode a str among token ids"),
        ([5, 999], "token id 999 is outside the vocabulary; allowed is 0 to 39"),
        ([5] * 70, "the text has 71 prompt tokens and one to come; the models place at most 64"),
        ("a \ud83d b", r"the text holds half a character \(U\+D83D at 2\)"),
        ({"content": "a"}, "cannot decode a dict"),
    ],
)
def test_which_input_failed(bad, says):
    networks = [build("gpt2", seed=seed) for seed in (1, 2)]
    decoder = BigLittleDecoder(*networks, tokenizers.bytewise())
    with pytest.raises(InputError, match=rf"^input 2 \(counted from 0\): {says}") as raised:
        decoder.generate(["a", [5], bad, "b"], max_new_tokens=2)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", [None, "pt", "np"])
def test_what_the_tokenizer_returns_is_what_it_was_given(bundled, sentences, tensors, side):
    texts = sentences[:3]
    encoded = bundled.tokenizer(texts, padding=True, padding_side=side, return_tensors=tensors)
    wanted = [result.token_ids for result in bundled.generate(texts, "large", max_new_tokens=12)]
    for inputs in (encoded, dict(encoded), encoded.input_ids):
        assert [r.token_ids for r in bundled.generate(inputs, "large", max_new_tokens=12)] == wanted
    plain = bundled.generate(encoded.input_ids, "large", max_new_tokens=12, attention_mask=encoded.attention_mask)
    assert [r.token_ids for r in plain] == wanted
    assert bundled.jobs(encoded)[1].source == bundled.tokenizer(texts[1]).input_ids


def test_a_stream_takes_a_mask(bundled, sentences):
    encoded = bundled.tokenizer([sentences[0]], padding="max_length", max_length=40)
    stream = bundled.stream(encoded.input_ids, "large", attention_mask=encoded.attention_mask, max_new_tokens=9)
    assert "".join(stream) == bundled.generate(sentences[0], "large", max_new_tokens=9)[0].text
