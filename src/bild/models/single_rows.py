"""Rows that share no pass: each is an object of its own that reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from bild.decoding.scores import Scores, Summary
from bild.models.passes import check_last


class ReadingRow(Protocol):
    """One text that has been read."""

    @property
    def length(self) -> int:
        """Tokens read."""

    def extend(self, tokens: Sequence[int], last: int) -> Tensor:
        """Read tokens; logits ``[K, V]`` after the last K of them, at most ``last``."""

    def truncate(self, length: int) -> None:
        """Forget everything after ``length`` tokens."""

    def copy(self) -> Any:
        """Another row that has read the same."""


class SingleRows:
    """A batch whose rows are read one by one; see :class:`bild.decoding.Scorer`.

    Args:
        rows: of the batch.
    """

    def __init__(self, rows: Sequence[ReadingRow]) -> None:
        self._rows: list[Any] = list(rows)

    @property
    def rows(self) -> list[Any]:
        """Those of the batch."""
        return self._rows

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self.rows]

    def read(self, row: Any, tokens: Sequence[int], last: int) -> Tensor:
        """As :meth:`ReadingRow.extend`."""
        scored: Tensor = row.extend(tokens, last)
        return scored

    @torch.inference_mode()
    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        check_last(tokens, last)
        scored = [self.read(row, new, last) for row, new in zip(self.rows, tokens, strict=True)]
        missing = [last - len(logits) for logits in scored]
        padded = [torch.nn.functional.pad(row, (0, 0, count, 0)) for row, count in zip(scored, missing, strict=True)]
        return torch.stack(padded)

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        return Scores.of(self.extend(tokens, last))

    def truncate(self, lengths: Sequence[int]) -> None:
        for row, length in zip(self.rows, lengths, strict=True):
            row.truncate(length)

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self.rows[b].copy() if b in rows[:at] else self.rows[b] for at, b in enumerate(rows)]

    def join(self, other: Self) -> None:
        self._rows += other.rows


def crop(past: Any, length: int) -> None:
    """Forget, in every layer of transformers' cache, what follows ``length`` states."""
    for layer in past.layers:
        excess = layer.get_seq_length() - length
        if excess > 0:
            layer.crop(-excess)
