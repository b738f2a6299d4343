"""Which prefix of a draft survives the large model, and what replaces the first loser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from bild.decoding.choice import Choice, Greedy
from bild.decoding.rows import Row


class Judgement(NamedTuple):
    """What the large model says of a draft; every field ``[B, T]``, position by position.

    The last position follows the whole draft: there is nothing to keep there, only a bonus.
    """

    keep: Tensor
    """Whether the drafted token may stay if all before it do."""
    replacement: Tensor
    """The large model's own token for the position: correction or bonus."""
    distance: Tensor
    """``d(p_S, p_L)``; larger is further apart. Zero where the rule measures none."""


class Acceptance(Protocol):
    """Judges all positions of a draft at once, without looking at the host."""

    def judge(
        self, logits: Tensor, drafted: Tensor, choice: Choice, rows: Sequence[Row], counts: Sequence[int]
    ) -> Judgement:
        """Judge ``drafted`` ``[B, T]`` by the large model's ``logits`` ``[B, T, V]``.

        Both are right-aligned; row ``b`` uses its last ``counts[b]`` positions, the last of which
        follows the draft (``drafted[b, -1]`` is ignored).
        """


def negative_log_likelihood(logits: Tensor, drafted: Tensor) -> Tensor:
    """``d = −log p_L(draft token)``, nats, 0…∞ (sections 3.4 and 7.1.2)."""
    return -logits.log_softmax(-1).gather(-1, drafted.unsqueeze(-1)).squeeze(-1)


METRICS = {"nll": negative_log_likelihood}
Metric = Literal["nll"]


@dataclass(frozen=True)
class WithinDistance:
    """BiLD's rollback policy: roll back the first token with ``d > threshold`` (section 3.4).

    A token the large model would itself choose is never rolled back, whatever its distance.

    Args:
        threshold: nats for the default metric, 0…∞; lower rolls back more: slower, nearer to large.
        metric: ``"nll"``, the negative log likelihood of the drafted token under the large model.

    Raises:
        ValueError: threshold out of range or unknown metric.
    """

    threshold: float
    metric: Metric = "nll"

    def __post_init__(self) -> None:
        if math.isnan(self.threshold) or self.threshold < 0:
            raise ValueError(f"rollback_threshold is {self.threshold}; allowed is 0 or more (inf: never roll back)")
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}; allowed are {', '.join(METRICS)}")

    def judge(
        self, logits: Tensor, drafted: Tensor, choice: Choice, rows: Sequence[Row], counts: Sequence[int]
    ) -> Judgement:
        distance = METRICS[self.metric](logits, drafted)
        likeliest = logits.argmax(-1)
        keep = (distance <= self.threshold) | (likeliest == drafted)
        replacement = likeliest if isinstance(choice, Greedy) else choice(logits, rows, counts)
        return Judgement(keep, replacement, distance)


@dataclass(frozen=True)
class ExactMatch:
    """Keep what the large model would itself have written; lossless for greedy decoding."""

    def judge(
        self, logits: Tensor, drafted: Tensor, choice: Choice, rows: Sequence[Row], counts: Sequence[int]
    ) -> Judgement:
        own = choice(logits, rows, counts)
        return Judgement(own == drafted, own, torch.zeros_like(own, dtype=torch.float32))
