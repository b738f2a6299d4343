"""Stop strings are cut off a stream before anything of them is shown."""

from __future__ import annotations

import random

import pytest

from bild.decoding import Commit, Scored
from bild.serving.texts import Trimmer, Writing
from tests.generation import tokenizers


@pytest.mark.parametrize("keep", [False, True])
def test_however_a_text_is_cut_it_ends_at_the_first_stop(keep):
    rng = random.Random(1)
    for _ in range(2000):
        text = "".join(rng.choice("ab") for _ in range(rng.randint(0, 12)))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 2))]
        trimmer, shown, at = Trimmer(stops, keep=keep), "", 0
        while at < len(text):
            width = rng.randint(1, 3)
            shown += trimmer.add(text[at : at + width])
            at += width
            # What is shown is never taken back.
            assert expected(text, stops, keep).startswith(shown)
        assert shown + trimmer.end() == expected(text, stops, keep)


def expected(text: str, stops: list[str], keep: bool) -> str:
    """The text up to the stop that is complete first."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end if keep else end - len(longest)]
    return text


@pytest.mark.parametrize("scored", [False, True])
def test_made_in_one_go_a_text_is_what_its_pieces_come_to(scored):
    tokenizer = tokenizers.bytewise()
    rng = random.Random(2)
    ids = [*tokenizer("aß日b c. ").input_ids, tokenizer.eos_token_id, len(tokenizer) + 1]
    for _ in range(200):
        tokens = [rng.choice(ids) for _ in range(rng.randint(1, 12))]
        stops = [rng.choice(["b", "c.", "ß", "a a"])] if rng.random() < 0.5 else []
        made = []
        for live in (True, False):
            writing = Writing(tokenizer, Trimmer(stops), scored=scored, live=live)
            for at, token in enumerate(tokens):
                end = "length" if at == len(tokens) - 1 else None
                scores = (Scored(token, -1.0, ()),) if scored else ()
                writing.add(Commit(0, (token,), ("large",), finish_reason=end, scored=scores))
            made.append((writing.text, writing.tokens, writing.finish_reason, writing.entries))
        assert made[0] == made[1] and bool(made[0][3]) <= scored
