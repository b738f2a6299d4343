"""Compiled graphs in a hand of our own (``runner.cpp``): torch's holds Python's lock for as long as a graph runs.

Without the lock several threads decode side by side, each its own rows, and one packed copy of the weights serves
them all. And a model writes token after token without returning to Python in between.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bild.decoding.rows import Halt
from bild.models.compiled import layers
from bild.models.native import Library

MOST_THREADS = 8
"""Threads that may run one graph at a time; more wait."""
HERE = Path(__file__).parent
RUNNER = Library(
    "runner", [HERE / "runner.cpp", HERE / "rounds.cpp"], [HERE / "runner.h"], ("-O2",), operator="run_graph"
)


@cache
def is_loaded() -> bool:
    """Whether graphs can be run so; compiles and loads the runner the first time."""
    return RUNNER.can_load(logging.INFO, "threads decode in turn: bild's runner")


def running() -> int:
    """Threads that run a graph at this moment."""
    # Nobody has loaded the runner where there is no such operator.
    count: int = torch.ops.bild.running_graphs.default() if hasattr(torch.ops.bild, "running_graphs") else 0
    return count


class Game(NamedTuple):
    """What rows begin with that two models decode in one call, as ``rounds.cpp`` takes it."""

    rows: list[list[int]]
    """Of each row: its length, how much of it the small and the large model have read, its longest draft, how many
    tokens it may still get, whether a doubtful token stays, how many of its last tokens are given, and how many the
    small model has written of its first draft."""
    limits: list[list[float]]
    """Of each row: the probability below which a token is doubted, the distance above which it is rolled back, and the
    probability from which on an end token passes unread."""
    tails: list[int]
    """The rows' last tokens, one row behind the other."""
    begun: tuple[list[int], list[float]]
    """What the small model has written before, likewise, and how probable each token is."""
    ends: frozenset[int]
    columns: int
    """That both storages have."""
    most: int
    """Rounds."""
    patience_s: float
    """No round begins later than this."""
    ragged: float
    """Share of a pass that is not padding, up to which its tokens are read one a row."""
    most_ragged: int
    """Tokens of a row up to which that is done."""


class Graph:
    """A compiled graph that several threads may run at a time.

    Args:
        file: its package.

    Raises:
        RuntimeError: the file cannot be read.
    """

    def __init__(self, file: Path) -> None:
        calls, weights, places = layers.read(file)
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        self._number: int = torch.ops.bild.open_graph.default(str(file), threads, calls, weights, places)
        # Looked up once: a small model's pass is not much longer than the looking.
        self._run, self._roll, self._play, self._close = (
            getattr(torch.ops.bild, name).default for name in ("run_graph", "roll_graph", "play_rounds", "close_graph")
        )

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        results: list[Tensor] = self._run(self._number, inputs)
        return results

    def roll(self, inputs: list[Tensor], halts: Sequence[Halt]) -> tuple[list[list[int]], list[list[float]]]:
        """Let rows write token after token until each has come to its halt.

        Args:
            inputs: of one new token a row, whose rows are named; see :class:`~bild.models.compiled.graphs.Read`.
            halts: of each row; all end with the same tokens.

        Returns:
            What each row wrote, and how probable each token was.
        """
        floors = torch.tensor([halt.below for halt in halts], dtype=torch.float64)
        rooms = torch.tensor([halt.room for halt in halts])
        found = self._roll(self._number, inputs, floors, _ends(halts[0].ends), rooms)
        tokens, probabilities, counts = (each.tolist() for each in found)
        written = [row[:count] for row, count in zip(tokens, counts, strict=True)]
        return written, [row[:count] for row, count in zip(probabilities, counts, strict=True)]

    def play(self, inputs: list[Tensor], small: Graph, small_inputs: list[Tensor], game: Game) -> list[list[Any]]:
        """Let this model judge what a small one drafts, round after round.

        Args:
            inputs: as the graph takes them; the first two are made anew for each pass.
            small: the graph of the small model, whose rows are named too.
            small_inputs: likewise.
            game: what rows begin with, and when it is over.

        Returns:
            Heads of events, what was written, how probable it was, the likeliest tokens, distances and lengths, as
            ``rounds.cpp`` has them.
        """
        found = self._play(
            small._number,
            small_inputs,
            self._number,
            inputs,
            torch.tensor(game.rows),
            torch.tensor(game.limits, dtype=torch.float64),
            torch.tensor(game.tails),
            torch.tensor(game.begun[0], dtype=torch.long),
            torch.tensor(game.begun[1], dtype=torch.float32),
            _ends(game.ends),
            game.columns,
            game.most,
            int(game.patience_s * 1e6),
            game.ragged,
            game.most_ragged,
        )
        return [each.tolist() for each in found]

    def __del__(self) -> None:
        # Where opening it failed there is nothing to close, and at the end of the process nobody to ask.
        close: Any = getattr(self, "_close", None)
        if close is not None:
            close(self._number)


class Fingerprint:
    """One number that differs where tensors have moved, were written to or hold other numbers.

    Args:
        tensors: which.
        sampled: those of them, contiguous and on the CPU, whose numbers are looked at.
        numbers: how many of each, about.
    """

    def __init__(self, tensors: Sequence[Tensor], sampled: Sequence[Tensor], numbers: int) -> None:
        self._watched: int = torch.ops.bild.watch_tensors.default(list(tensors), list(sampled), numbers)
        self._tell, self._close = torch.ops.bild.fingerprint.default, torch.ops.bild.unwatch_tensors.default

    def __call__(self) -> int:
        told: int = self._tell(self._watched)
        return told

    def __del__(self) -> None:
        close: Any = getattr(self, "_close", None)
        if close is not None:
            close(self._watched)


@cache
def _ends(tokens: frozenset[int]) -> Tensor:
    return torch.tensor(sorted(tokens), dtype=torch.long)
