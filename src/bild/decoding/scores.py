"""Next-token logits, and what matters most of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bild.errors import ScoreError


class Summary:
    """What matters most of next-token logits ``z`` ``[B, K, V]``.

    Args:
        likeliest: the token of the highest logit ``[B, K]``, the first of equals.
        probability: its probability ``[B, K]``.
        log_total: ``log Σ exp z`` ``[B, K]``, so that ``log p(x) = z(x) − log_total``.
    """

    def __init__(self, likeliest: Tensor, probability: Tensor, log_total: Tensor) -> None:
        self.likeliest, self.probability, self.log_total = likeliest, probability, log_total

    @staticmethod
    def of(logits: Tensor, ids: Tensor | None = None) -> Summary:
        """The summary of logits that nobody has summed up; each part is computed when it is first asked for.

        Args:
            logits: of all tokens, or of some.
            ids: which tokens they are of ``[V]``, ascending; None: of all.
        """
        return _Lazy(logits, ids)

    def select(self, rows: list[int]) -> Summary:
        """Of these rows alone."""
        return Summary(self.likeliest[rows], self.probability[rows], self.log_total[rows])


class _Lazy(Summary):
    """A :class:`Summary` whose parts are computed when they are first asked for."""

    def __init__(self, logits: Tensor, ids: Tensor | None = None) -> None:
        self.logits, self.ids = logits, ids

    @cached_property
    def likeliest(self) -> Tensor:  # type: ignore[override]
        places = self.logits.argmax(-1)
        return places if self.ids is None else self.ids[places]

    @cached_property
    def log_total(self) -> Tensor:  # type: ignore[override]
        return self.logits.logsumexp(-1)

    @cached_property
    def probability(self) -> Tensor:  # type: ignore[override]
        return (self.logits.amax(-1) - self.log_total).exp()

    def select(self, rows: list[int]) -> Summary:
        return _Lazy(self.logits[rows], self.ids)


class Scores(NamedTuple):
    """Next-token logits ``[B, K, V]``, at least float32, and their summary."""

    logits: Tensor
    summary: Summary

    @classmethod
    def of(cls, logits: Tensor) -> Scores:
        """Of logits in any format.

        Probabilities need at least float32, and a CPU finds the largest of 16-bit numbers more slowly.
        """
        wide = widened(logits)
        return cls(wide, Summary.of(wide))

    def select(self, rows: list[int]) -> Scores:
        """Of these rows alone."""
        return Scores(self.logits[rows], self.summary.select(rows))


def widened(numbers: Tensor) -> Tensor:
    """Numbers in float32 at least."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def check_numbers(highest: Sequence[float], whose: str, row: int, written: int) -> None:
    """Refuse to go on from scores that are not numbers.

    Args:
        highest: the largest score of each position; it is no number either where any is none.
        whose: scores, for the message.
        row: its index.
        written: new tokens before the first position.

    Raises:
        ScoreError: one of them is NaN or infinite.
    """
    if any(score != score or score == math.inf for score in highest):
        raise ScoreError(
            f"{whose} scores are not numbers (NaN or infinite) in row {row} after {written} new tokens; load it in a "
            "wider dtype, such as float32"
        )
