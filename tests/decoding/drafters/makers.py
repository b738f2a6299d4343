"""Drafters over toys, by what they are called in tests."""

from __future__ import annotations

import random
from collections.abc import Callable

from bild.decoding import (
    Backoff,
    Bandit,
    Cascade,
    Commit,
    Draft,
    Drafter,
    First,
    ModelDrafter,
    NGram,
    Ngrams,
    Policy,
    Replay,
    Request,
    decode,
)
from bild.decoding.draft import ENDS
from tests.toy import ToyModel, ToyScorer

VOCAB = 4
SMALL, LARGE = ToyModel(1, VOCAB, blend=0.8), ToyModel(2, VOCAB, blend=0.8)
MIDDLE = ToyModel(3, VOCAB, blend=0.85)


class Random:
    """Proposes any tokens, as many as it likes."""

    name = "random"

    def __init__(self, seed: int = 0):
        self.random = random.Random(seed)

    def draft(self, rows, room):
        return [self._of(row, free) for row, free in zip(rows, room, strict=True)]

    def _of(self, row, room):
        draft = Draft(writer=self.name, certain=True, reason="nothing" if room else None)
        for _ in range(self.random.randint(0, room)):
            row.tokens.append(self.random.randrange(VOCAB))
            draft.tokens.append(row.tokens[-1])
            draft.reason = "window"
            finish = row.ended()
            if finish is not None:
                draft.reason = ENDS[finish]
                break
        return draft

    def read(self, rows, limit):
        return True

    def truncate(self, lengths):
        pass

    keep = join = truncate


def small(count: int) -> ModelDrafter:
    return ModelDrafter(ToyScorer(SMALL, count))


COUNTS = Ngrams(VOCAB).add([[0, 1, 2, 1, 2, 3], [1, 1, 2, 0, 1, 2, 3], [2, 0, 2, 1, 2]])
MAKERS: dict[str, Callable[[int], Drafter]] = {
    "small": small,
    "random": lambda count: Random(),
    "ngram": lambda count: NGram(shortest=1),
    "source": lambda count: NGram(look_in="source", which="first", longest=2, shortest=1, window=3),
    "backoff": lambda count: Backoff(COUNTS, count),
    "replay": lambda count: Replay({row: [1, 2, 3, 1, 2, 0, 1, 2] * 3 for row in range(64)}),
    "first": lambda count: First([NGram(shortest=2, longest=3), small(count)]),
    "first of three": lambda count: First([NGram(shortest=3), small(count), Random()]),
    "ucb": lambda count: Bandit([NGram(shortest=1), small(count)]),
    "exp3": lambda count: Bandit([NGram(shortest=1), small(count), Random()], rule="exp3"),
    "exp3 of two": lambda count: Bandit([NGram(shortest=1), small(count)], rule="exp3"),
    "halving": lambda count: Bandit([NGram(shortest=1), small(count)], rule="halving", reward="overlap"),
    "cascade": lambda count: Cascade(ToyScorer(MIDDLE, count), small(count), window=2),
    "cascade of n-grams": lambda count: Cascade(ToyScorer(MIDDLE, count), NGram(shortest=1)),
    "cascade of four": lambda count: Cascade(
        ToyScorer(MIDDLE, count), Cascade(ToyScorer(SMALL, count), Backoff(COUNTS, count), 2, "low", 2), 3
    ),
    "cascade of several": lambda count: Cascade(
        ToyScorer(MIDDLE, count), First([NGram(shortest=2), Bandit([Replay([[1, 2, 3] * 9] * 64), small(count)])])
    ),
    "nested": lambda count: First([First([Replay([]), NGram(shortest=3)]), Bandit([NGram(shortest=1), small(count)])]),
}
"""Given the number of rows."""


def texts(requests: list[Request], policy: Policy, drafter: Drafter | None, **options) -> list[list[Commit]]:
    """The commits of each row."""
    rows: list[list[Commit]] = [[] for _ in requests]
    for commit in decode(requests, policy, large=ToyScorer(LARGE, len(requests)), drafter=drafter, **options):
        rows[commit.row].append(commit)
    return rows


def tokens(commits: list[Commit]) -> list[int]:
    return [token for commit in commits for token in commit.tokens]
