"""Entries come with the text they belong to, and their names and bytes are those of the text."""

from __future__ import annotations

import pytest

from bild.decoding import Commit, Scored
from bild.serving.likelihood import Entries, of_chat, of_completion
from bild.serving.texts import Trimmer, Writing
from tests.generation import tokenizers


@pytest.fixture(scope="module")
def bytewise():
    return tokenizers.bytewise()


def commit(ids: list[int], likeliest=(), **more) -> Commit:
    own = tuple(Scored(id, -0.5, tuple(likeliest)) for id in ids)
    return Commit(0, tuple(ids), ("large",) * len(ids), scored=own, **more)


def test_a_character_in_pieces_belongs_to_the_token_that_completes_it_and_the_end_has_a_name_and_no_bytes(bytewise):
    ids = bytewise("aß").input_ids
    writing = Writing(bytewise, Trimmer(), scored=True)
    for each in ids:
        writing.add(commit([each]))
    writing.add(commit([bytewise.eos_token_id], finish_reason="eos"))
    content = of_chat(writing.entries, bytewise)["content"]
    assert [each["token"] for each in content] == ["a", "", "ß", bytewise.eos_token]
    assert [each["bytes"] for each in content] == [[97], [], [0xC3, 0x9F], []]
    found = of_completion(writing.entries, bytewise)
    assert found["text_offset"] == [0, 1, 1, 2] and found["token_logprobs"] == [-0.5] * 4


def test_entries_wait_for_the_text_that_a_stop_string_may_still_cut_off(bytewise):
    ids = bytewise("abcd").input_ids
    writing = Writing(bytewise, Trimmer(["cx", "d"]), scored=True)
    counts = []
    for at, each in enumerate(ids):
        writing.add(commit([each], finish_reason="stop" if at == 3 else None))
        counts.append("".join(entry.text for entry in writing.entries))
    assert counts == ["a", "ab", "ab", "abc"] and writing.text == "abc"


def test_other_tokens_have_the_text_they_would_add(bytewise):
    a, space, b, end = [*bytewise("a b").input_ids, bytewise.eos_token_id]
    entries = Entries(bytewise).add(commit([a], [(end, -0.1), (a, -0.5), (b, -3.0)]), 1, cut=False)
    assert of_completion(entries, bytewise)["top_logprobs"] == [{bytewise.eos_token: -0.1, "a": -0.5, "b": -3.0}]
    (own,) = of_chat(entries, bytewise)["content"]
    assert [(each["token"], each["bytes"]) for each in own["top_logprobs"]][1:] == [("a", [97]), ("b", [98])]
    numbers = Entries(None).add(commit([a], [(space, -0.1)]), 9, cut=False)
    assert of_completion(numbers, None)["top_logprobs"] == [{str(space): -0.1, str(a): -0.5}]
