"""What crosses the network is read back as it was, and what strangers send is looked through."""

from __future__ import annotations

import json
import math

import pytest
import torch

from bild.edge.wire import Answer, Opening, Proposal, compact, digest, row_of, row_to_dict
from bild.errors import InputError

OPENING = Opening([5, 6], [0], [3, 1], {"rule": "exact_match"}, {"top_k": 3}, 10, 7, 2**64 - 1)


def again(value):
    return json.loads(compact(value))


def test_openings_and_rounds_come_back():
    assert Opening.read(again(OPENING.to_dict()), 7) == OPENING
    for proposal in (
        Proposal("a", 4, (1, 2), (0.25, 1 / 3)),
        Proposal("a", 4, (1, 2), certain=True),
        Proposal("a", 1, ()),
    ):
        assert Proposal.read(again(proposal.to_dict()), 7) == proposal
    # A token and its place are all there is to most rounds.
    assert compact(Proposal("s" * 12, 17, (812, 44, 3)).to_dict()) == (
        b'{"session":"ssssssssssss","at":17,"draft":[812,44,3]}'
    )


def test_an_answer_says_what_the_draft_does_not():
    draft = (4, 5, 6)
    agreed = Answer(3, 2, (4, 5, 6, 2), (0.0, 0.0, 0.0), 4)
    assert agreed.to_dict(draft) == {"accepted": 3, "read": 4, "token": 2}
    near = Answer(1, 2, (3, 2), (0.123456789, math.inf, 3.0), 4)
    told = near.to_dict(draft)
    assert told["likeliest"] == {0: 3} and told["distances"] == [0.123457, None, 3.0]
    assert Answer.read_from(again(told), draft, 7) == Answer(1, 2, (3, 2), (0.123457, math.inf, 3.0), 4)
    wants = Answer(1, None, (4, 2), (), 4)
    assert Answer.read_from(again(wants.to_dict(draft)), draft, 7) == Answer(1, None, read=4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_distributions_come_back_to_the_bit_and_sparse_ones_are_short(kind):
    dense = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=kind)
    assert torch.equal(row_of(again(row_to_dict(dense)), 1000), dense)
    sparse = torch.where(dense > 0.99, dense, 0)
    written = again(row_to_dict(sparse))
    assert torch.equal(row_of(written, 1010), torch.cat([sparse, torch.zeros(10, dtype=kind)]))
    assert len(compact(written)) * 20 < len(compact(row_to_dict(dense)))
    assert row_of(row_to_dict(dense.to(torch.bfloat16)), 1000).dtype == torch.float32


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        OPENING.to_dict() | {"prompt": []},
        OPENING.to_dict() | {"text": [7]},
        OPENING.to_dict() | {"prompt": [True]},
        OPENING.to_dict() | {"vocab_size": 8},
        OPENING.to_dict() | {"max_new_tokens": 2},
        OPENING.to_dict() | {"seed": 1.5},
        OPENING.to_dict() | {"options": []},
        OPENING.to_dict() | {"code": "import os"},
    ],
    ids=str,
)
def test_openings_that_are_none(wrong):
    with pytest.raises(InputError):
        Opening.read(wrong, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"session": 1, "at": 1, "draft": []},
        {"session": "a", "at": -1, "draft": []},
        {"session": "a", "at": 1, "draft": [7]},
        {"session": "a", "at": 1, "draft": [-1]},
        {"session": "a", "at": 1, "draft": "ab"},
        {"session": "a", "at": 1, "draft": [1], "q": [0.5, 0.5]},
        {"session": "a", "at": 1, "draft": [1], "q": [math.nan]},
        {"session": "a", "at": 1, "draft": [1], "q": [-0.1]},
        {"session": "a", "at": 1, "draft": [1], "q": 5},
        {"session": "a", "at": 1, "draft": [1], "q": True},
        {"session": "a", "at": 1, "draft": [1] * 5000},
        {"session": "a", "at": 1, "draft": [1], "row": {"kind": "float32", "size": 2, "values": "!"}},
        {"session": "a", "at": 1, "draft": [1], "row": {"kind": "int8", "size": 2, "values": ""}},
        {"session": "a", "at": 1, "draft": [1], "row": {"kind": "float32", "size": 9, "values": ""}},
        {"session": "a", "at": 1, "draft": [1], "row": row_to_dict(torch.tensor([1.0, math.inf]))},
        {"session": "a", "at": 1, "draft": [1], "row": row_to_dict(torch.tensor([1.0, -1.0]))},
        {"session": "a", "at": 1, "draft": [1], "row": row_to_dict(torch.eye(7)[0]) | {"ids": "BwAAAA=="}},
    ],
    ids=lambda wrong: str(wrong)[:70],
)
def test_rounds_that_are_none(wrong):
    with pytest.raises(InputError):
        Proposal.read(wrong, 7)


@pytest.mark.parametrize(
    "wrong",
    [
        {"accepted": 3, "read": 1, "token": 1},
        {"accepted": 0, "read": 1},
        {"accepted": 0, "read": 1, "token": 7},
        {"accepted": 2, "read": 1, "wants": "row"},
        {"accepted": 0, "read": 1, "token": 1, "likeliest": {"9": 1}},
        {"accepted": 0, "read": 1, "token": 1, "likeliest": {"x": 1}},
        {"accepted": 0, "read": 1, "token": 1, "distances": [1.0]},
        {"accepted": 1, "read": 1, "token": 1, "distances": [10**400]},
        {"accepted": 0, "read": 1, "token": 1, "text": "!"},
    ],
    ids=str,
)
def test_answers_that_are_none(wrong):
    with pytest.raises(InputError):
        Answer.read_from(wrong, (1, 2), 7)


def test_a_digest_is_of_pieces_and_their_ids():
    assert digest({"a": 0, "b": 1}) == digest({"b": 1, "a": 0}) != digest({"a": 1, "b": 0})
    assert len({digest({"a": 0}), digest({"a": 1}), digest({"b": 0}), digest({})}) == 4
