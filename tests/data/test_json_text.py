"""JSON that any reader takes."""

from __future__ import annotations

import json
import math

import pytest

from bild.data.json_text import from_json, to_json


def test_one_object_is_one_line_to_every_reader():
    value = {"text": "a\nb\x85c\u2028d\u2029e\x0bf\x1cg läuft"}
    assert len(to_json(value).splitlines()) == 1 and "läuft" in to_json(value)
    assert json.loads(to_json(value)) == value


def test_half_a_surrogate_pair_can_be_written_and_read_again():
    assert to_json("cut \ud83d, whole 🙂").encode() == b'"cut \\ud83d, whole \xf0\x9f\x99\x82"'
    assert json.loads(to_json("cut \ud83d")) == "cut \ud83d"


def test_numbers_that_json_lacks_are_written_as_json():
    text = to_json({"a": math.inf, "b": [-math.inf, math.nan, 0.5], 'say "NaN" \\': "Infinity"}, indent=2)
    refused = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert refused == {"a": math.inf, "b": [-math.inf, None, 0.5], 'say "NaN" \\': "Infinity"}


@pytest.mark.parametrize(
    ("text", "why"), [("[" * 100_000, "nested too deep"), ("{", "not JSON"), (b"\xff", "not JSON")]
)
def test_what_is_no_json(text, why):
    with pytest.raises(ValueError, match=why):
        from_json(text)
