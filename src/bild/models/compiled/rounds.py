"""Rounds of two compiled models in one call (``rounds.cpp``): what lies between their passes costs as much as some of
them where the models are small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from bild.decoding.scorer import Judged, Played, Turn
from bild.models.compiled import calling, runner

if TYPE_CHECKING:
    from bild.models.compiled.scorer import CompiledScorer

UNREAD, BROKEN = 0, 2
"""What became of a draft, besides that it was judged."""


def can_play(large: CompiledScorer, small: CompiledScorer) -> bool:
    """Whether both run by our own hand, and tell tokens of the shared vocabulary."""
    return all(
        scorer.rolls and scorer.graphs.rolls and scorer.model.dtype != torch.float64 for scorer in (large, small)
    )


def play(
    large: CompiledScorer, small: CompiledScorer, turns: Sequence[Turn], most: int, patience_s: float
) -> tuple[list[Played], list[int], list[int]]:
    """See :class:`~bild.decoding.scorer.Playing`; and how much the small and the large model have read of each row."""
    begun = _first_draft(large, small, turns)
    rows: list[list[int]] = []
    limits: list[list[float]] = []
    tails: list[int] = []
    columns = 0
    for turn, small_read, large_read in zip(turns, small.lengths, large.lengths, strict=True):
        length, halt = len(turn.tokens), turn.halt
        tail = turn.tokens[min(small_read, large_read) :]
        if length - min(small_read, large_read) > min(small.graphs.longest, large.graphs.longest) - turn.window:
            # Long prompts have passes of another kind.
            return [], small.lengths, large.lengths
        rows.append(
            [length, small_read, large_read, turn.window, halt.room, turn.keeps_doubtful, len(tail), len(begun[0])]
        )
        limits.append([halt.below, turn.limit, turn.sure_of_end])
        tails += tail
        columns = max(columns, length + turn.window + 1)
    for scorer in (small, large):
        scorer.reserve(columns)
    every = range(len(turns))
    columns = min(small.columns, large.columns)
    game = runner.Game(
        rows, limits, tails, begun, turns[0].halt.ends, columns, most, patience_s, calling.RAGGED, calling.MOST_RAGGED
    )
    small_graph, large_graph = small.graphs.run_read, large.graphs.run_read
    assert isinstance(small_graph, runner.Graph) and isinstance(large_graph, runner.Graph)
    heads, *told, lengths = large_graph.play(large.part(every)[1], small_graph, small.part(every)[1], game)
    small_lengths, large_lengths = [both[0] for both in lengths], [both[1] for both in lengths]
    # Behind what is kept stands what was rolled back.
    used = max(large_lengths) + 2 + max(turn.window for turn in turns)
    for scorer in (small, large):
        scorer.reserve(min(used, columns))
    return list(_events(heads, *map(iter, told))), small_lengths, large_lengths


def _first_draft(large: CompiledScorer, small: CompiledScorer, turns: Sequence[Turn]) -> tuple[list[int], list[float]]:
    """What the small model writes of the only row while its source is being encoded for the large one, which costs no
    time, and how probable each token is; nothing where nothing is being encoded."""
    if not large.is_encoding or len(turns) > 1 or len(turns[0].tokens) - small.lengths[0] != 1:
        return [], []
    (turn,) = turns
    written, probabilities = small.roll_to(
        [turn.tokens[-1:]], [turn.halt._replace(room=min(turn.window, turn.halt.room))]
    )
    return written[0], probabilities[0]


def _events(
    heads: list[list[int]],
    tokens: Iterator[int],
    probabilities: Iterator[float],
    likeliest: Iterator[int],
    distances: Iterator[float],
) -> Iterator[Played]:
    def next_of(numbers: Iterator[Any], count: int) -> list[Any]:
        return list(islice(numbers, count))

    for row, written, drafted, outcome, accepted, next_token, small_read, large_read in heads:
        judged = None
        if outcome != UNREAD:
            own, apart = next_of(likeliest, drafted + 1), next_of(distances, drafted)
            judged = Judged(accepted, next_token, own, apart, large_read, outcome != BROKEN)
        yield Played(row, next_of(tokens, written), next_of(probabilities, written), small_read, judged)
