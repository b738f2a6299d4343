"""Prompt lookup by value."""

from __future__ import annotations

import pytest
import torch

from bild.decoding import NGram, Policy, Request, Row, Sampling, decode
from tests.decoding.drafters.makers import VOCAB, texts, tokens
from tests.decoding.test_sampling import chi_square_p, expected_texts
from tests.toy import ToyModel, ToyScorer


def proposes(drafter: NGram, prompt: list[int], room: int = 9, **options) -> tuple[list[int], str | None]:
    row = Row(0, Request(prompt=prompt, max_new_tokens=50, **options))
    (draft,) = drafter.draft([row], [room])
    assert draft.certain and draft.writer == "ngram" and row.tokens == prompt + draft.tokens
    return draft.tokens, draft.reason


@pytest.mark.parametrize(
    ("options", "prompt", "room", "expected"),
    [
        ({}, [1, 2, 3, 4, 1, 2], 2, ([3, 4], "window")),
        # The draft runs into itself: what repeats goes on.
        ({}, [1, 2, 3, 4, 1, 2], 7, ([3, 4, 1, 2, 3, 4, 1], "window")),
        ({"shortest": 1}, [5, 5], 3, ([5, 5, 5], "window")),
        ({"window": 1}, [1, 2, 3, 4, 1, 2], 7, ([3], "window")),
        # The longest n-gram counts, then the latest place, or the first.
        ({"shortest": 1}, [1, 2, 8, 7, 2, 9, 1, 2], 1, ([8], "window")),
        ({"shortest": 1, "longest": 1}, [1, 2, 8, 7, 2, 9, 1, 2], 1, ([9], "window")),
        ({"shortest": 1, "longest": 1, "which": "first"}, [1, 2, 8, 7, 2, 9, 1, 2], 1, ([8], "window")),
        # Nothing to look in, nothing found, and no room.
        ({}, [1], 5, ([], "nothing")),
        ({}, [1, 2, 3, 4, 9, 2], 5, ([], "nothing")),
        ({}, [1, 2, 3, 1, 2], 0, ([], None)),
        ({"look_in": "source"}, [1, 2, 3, 1, 2], 5, ([], "nothing")),
        # Ids that the models do not share are not proposed.
        ({"vocab_size": 4}, [1, 2, 3, 4, 1, 2], 5, ([3], "window")),
        ({"vocab_size": 3}, [1, 2, 3, 4, 1, 2], 5, ([], "nothing")),
    ],
)
def test_what_followed_before(options, prompt, room, expected):
    assert proposes(NGram(**options), prompt, room) == expected


def test_the_source_goes_before_the_text_where_both_know():
    prompt, source = [0, 1, 2, 3, 1, 2], [9, 1, 2, 7, 6]
    assert proposes(NGram(), prompt, source=source) == ([7, 6], "window")
    assert proposes(NGram(look_in="text"), prompt, 1, source=source) == ([3], "window")
    assert proposes(NGram(look_in="source"), prompt, 1, source=source) == ([7], "window")
    assert proposes(NGram(), [0, 9, 1, 2, 3, 9, 1, 2], 1, source=[1, 2, 7]) == ([3], "window")


def test_a_draft_stops_where_the_text_ends():
    assert proposes(NGram(), [1, 2, 3, 4, 1, 2], eos_token_ids=[3]) == ([3], "end")
    assert proposes(NGram(), [1, 2, 3, 4, 1, 2], stop=lambda tokens: tokens[-1] == 4) == ([3, 4], "stop")


def test_an_end_that_was_looked_up_is_read_even_where_a_models_own_would_pass():
    """A chat's earlier turns hold end tokens, so the n-gram finds one; nobody has said how likely it is here."""
    asked = Request(prompt=[1, 2, 3, 0, 1, 2], max_new_tokens=20, eos_token_ids=[3])
    policy = Policy.bild(rollback_threshold=0.0)
    (commits,) = texts([asked], policy, NGram())
    (alone,) = texts([asked], Policy.large(), None)
    assert commits[0].draft == (3,) and commits[0].verified and tokens(commits) == tokens(alone)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 0}, "window is 0"),
        ({"shortest": 0}, "shortest is 0"),
        ({"shortest": 3, "longest": 2}, "shortest is 3 and longest is 2"),
        ({"look_in": "prompt"}, "look_in is 'prompt'; allowed are text, source, both"),
        ({"which": "last"}, "which is 'last'; allowed are latest, first"),
    ],
)
def test_values_out_of_range_are_one_line(options, says):
    with pytest.raises(ValueError, match=says) as raised:
        NGram(**options)
    assert "\n" not in str(raised.value)


def test_a_round_takes_no_longer_in_a_long_text():
    """Each token is entered once, whatever the number of rounds."""
    reads = [0]

    class Counted(list):
        def __getitem__(self, at):
            if isinstance(at, slice):
                reads[-1] += len(range(*at.indices(len(self))))
            return super().__getitem__(at)

    row = Row(0, Request(prompt=[0], max_new_tokens=2000))
    row.tokens = Counted(row.tokens)
    for token in range(1, 500):
        NGram(longest=3, shortest=1).draft([row], [5])
        row.tokens.append(token)
        row.committed = len(row.tokens)
        reads.append(0)
    assert reads[10] == reads[-2] <= 2 * (1 + 2 + 3)


class Copying(ToyModel):
    """Likes to go on as after the last token before; so a looked-up draft is often kept, and often not."""

    def logits(self, prefix):
        logits = 0.5 * super().logits(prefix)
        before = [at for at in range(1, len(prefix)) if prefix[at - 1] == prefix[-1]]
        if before:
            logits[prefix[before[-1]]] += 1.0
        return logits


def seen_with(drafter: NGram, draws: int, length: int) -> dict[tuple[int, ...], int]:
    requests = [
        Request(prompt=[0, 1, 2, 0], max_new_tokens=length, generator=torch.Generator().manual_seed(seed))
        for seed in range(draws)
    ]
    rows: list[list[int]] = [[] for _ in requests]
    policy = Policy.speculative_sampling(window=2)
    large = ToyScorer(Copying(4, 3), draws)
    for commit in decode(requests, policy, large=large, drafter=drafter, choice=Sampling()):
        rows[commit.row] += commit.tokens
    seen: dict[tuple[int, ...], int] = {}
    for row in rows:
        seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    return seen


class Unsaid(NGram):
    """Does not say that it is certain, and that every token were equally likely."""

    def draft(self, rows, room):
        drafts = super().draft(rows, room)
        for draft in drafts:
            draft.certain, draft.logits = False, [torch.zeros(3, dtype=torch.float64) for _ in draft.tokens]
        return drafts


def test_rejection_sampling_of_what_was_looked_up_has_the_large_models_distribution():
    draws, length = 3000, 3

    class FromPrompt(Copying):
        def logits(self, prefix):
            return super().logits([0, 1, 2, *prefix])

    expected = expected_texts(FromPrompt(4, 3), lambda logits: logits, length, draws)
    values = [chi_square_p(seen_with(kind(shortest=1), draws, length), expected) for kind in (NGram, Unsaid)]
    # The second can fail, and does.
    assert values[0] > 0.01 and values[1] < 1e-6


def test_periods_of_the_large_model_are_found():
    """A model that goes round in circles is drafted for without any other model."""

    class Round(ToyModel):
        def logits(self, prefix):
            return 9.0 * torch.nn.functional.one_hot(torch.tensor((prefix[-1] + 1) % VOCAB), VOCAB).double()

    asked = Request(prompt=[0], max_new_tokens=60)
    large = ToyScorer(Round(0, VOCAB))
    commits = list(decode([asked], Policy.exact(), large=large, drafter=NGram()))
    assert tokens(commits) == [at % VOCAB for at in range(1, 61)] and large.passes <= 12


def test_where_nothing_is_found_the_large_model_makes_no_pass_and_reads_no_token_more_than_alone():
    class Counting(ToyScorer):
        tokens = 0

        def extend(self, tokens, last=1):
            self.tokens += sum(map(len, tokens))
            return super().extend(tokens, last)

    model, requests = ToyModel(2, 60), [Request(prompt=[at, 3, 5], max_new_tokens=20) for at in range(4)]

    def work(policy, drafter):
        scorer = Counting(model, 4)
        commits = list(decode(requests, policy, large=scorer, drafter=drafter))
        return scorer.passes, scorer.tokens, sorted((c.row, c.tokens) for c in commits)

    never = NGram(shortest=9, longest=9)
    assert work(Policy.exact(), never) == work(Policy.large(), None)
    # The control: with a drafter that finds something it does read more.
    assert work(Policy.exact(), NGram(shortest=1))[1] > work(Policy.large(), None)[1]
