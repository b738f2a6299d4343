"""Rows of a batch that may be worked on together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bild.decoding.rows import Row, Rules, process
from bild.decoding.scores import Scores

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Some rows of a batch, in its order."""

    members: list[int]
    rules: Rules
    """Of one of its rows; those of the others are alike."""
    processes: bool
    """Whether its rows change their scores."""
    whole: bool
    """Whether it is the whole batch."""

    def of(self, values: Sequence[T]) -> Sequence[T]:
        """What belongs to its rows."""
        return values if self.whole else [values[b] for b in self.members]

    def scores(self, scores: Scores, rows: Sequence[Row], counts: Sequence[int]) -> Scores:
        """The scores of its rows, after their processors.

        Nothing is copied of a group that is the whole batch and changes no scores.
        """
        own = scores if self.whole else scores.select(self.members)
        return process(self.of(rows), own, self.of(counts)) if self.processes else own


def groups(rows: Sequence[Row], alike: Callable[[Rules, Rules], bool]) -> list[Group]:
    """The rows of a batch in as few groups as ``alike`` allows. Rows that change their scores stay by themselves."""
    members: list[list[int]] = []
    for b, row in enumerate(rows):
        for group in members:
            first = rows[group[0]]
            # Rows of one call share one object for their rules, so a batch is mostly settled by this question.
            same = first.rules is row.rules or alike(first.rules, row.rules)
            if same and (first.request.process is None) == (row.request.process is None):
                group.append(b)
                break
        else:
            members.append([b])
    return [_group(rows, group) for group in members]


def _group(rows: Sequence[Row], members: list[int]) -> Group:
    first = rows[members[0]]
    return Group(members, first.rules, first.request.process is not None, len(members) == len(rows))
