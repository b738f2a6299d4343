"""A known text, proposed as long as it is followed."""

from __future__ import annotations

from bild.decoding import Replay, Request, Row


def proposals(drafter: Replay, written: list[int], room: int = 3) -> list[list[int]]:
    """What is proposed after each committed token."""
    row, found = Row(0, Request(prompt=[9], max_new_tokens=50)), []
    for token in [*written, None]:
        (draft,) = drafter.draft([row], [room])
        assert draft.certain and draft.writer == "replay" and bool(draft.tokens) == (draft.reason != "nothing")
        found.append(draft.tokens)
        del row.tokens[row.committed :]
        if token is not None:
            row.tokens.append(token)
            row.committed += 1
    return found


def test_follows_until_the_text_is_left():
    text = [1, 2, 3, 4, 5]
    assert proposals(Replay([text]), [1, 2, 3]) == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5]]
    assert proposals(Replay([text]), [1, 2, 3, 4, 5])[-1] == []
    assert proposals(Replay([text], realign=False), [1, 7, 2, 3, 4]) == [[1, 2, 3], [2, 3, 4], [], [], [], []]


def test_finds_its_place_again_by_three_tokens_further_on():
    text = [1, 2, 3, 4, 5, 6]
    # A word more, a word less; and a place that lies behind is not gone back to.
    assert proposals(Replay([text]), [1, 7, 2, 3, 4])[-3:] == [[], [], [5, 6]]
    assert proposals(Replay([text]), [1, 3, 4, 5])[-2:] == [[], [6]]
    assert proposals(Replay([text]), [1, 2, 3, 4, 9, 1, 2, 3])[-1] == []


def test_rows_without_a_text_and_an_end_in_it():
    assert proposals(Replay({5: [1, 2]}), [1]) == [[], []]
    row = Row(0, Request(prompt=[9], max_new_tokens=50, eos_token_ids=[2]))
    (draft,) = Replay([[1, 2, 3]]).draft([row], [9])
    assert draft.tokens == [1, 2] and draft.reason == "end"
