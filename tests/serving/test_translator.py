"""A mapper of batches: the same texts as one process, and no single line ends a run."""

from __future__ import annotations

import numpy as np
import pytest

from bild.errors import InputError
from bild.serving.translator import Translator

LONG = "w7 " * 600


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    place = tmp_path_factory.mktemp("pair")
    pair.save_pretrained(place)
    return str(place)


def test_a_batch_keeps_its_columns_and_has_the_texts_of_generate(folder, pair):
    mapper = Translator(folder, policy="exact", options={"max_new_tokens": 8}, runtime="eager", dtype="float32")
    texts = ["w7 w8", "", "w3", "  ", "w20 w21 w22"]
    found = mapper({"text": np.array(texts, dtype=object), "id": np.arange(5)})
    expected = [result.text for result in pair.generate(["w7 w8", "w3", "w20 w21 w22"], "exact", max_new_tokens=8)]
    assert list(found["translation"]) == [expected[0], "", expected[1], "  ", expected[2]]
    assert list(found["error"]) == [""] * 5 and list(found["id"]) == list(range(5)) and list(found["text"]) == texts
    with pytest.raises(InputError, match="there is no column 'text'; there are line"):
        mapper({"line": np.array(["w7"])})


def test_a_line_that_cannot_be_decoded_has_a_reason_and_the_others_their_texts(folder, monkeypatch):
    mapper = Translator(folder, options={"max_new_tokens": 4}, runtime="eager", dtype="float32")
    monkeypatch.setattr(mapper.decoder.large, "max_source_positions", 100)
    found = mapper({"text": ["w7", LONG, "w8", "w9"]})
    assert found["translation"][1] == "" and "the models place at most 100" in found["error"][1]
    assert [bool(text) for text in found["translation"]] == [True, False, True, True]
    assert [bool(error) for error in found["error"]] == [False, True, False, False]


@pytest.mark.parametrize("wrong", [{"policy": "fast"}, {"options": {"max_new_tokens": 0}}, {"options": {"colour": 1}}])
def test_what_is_wrong_for_every_line_is_raised(folder, wrong):
    with pytest.raises(InputError):
        Translator(folder, runtime="eager", dtype="float32", **wrong)({"text": ["w7", "w8"]})
