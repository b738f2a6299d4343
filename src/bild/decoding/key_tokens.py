"""Key tokens: some tokens have to be the large model's own, others only near it (row 9, arXiv 2511.11733).

Which tokens matter the paper decides from how differently the models are surprised, how far ahead the large model's
first choice is, and how far apart the distributions are, with weights that it does not give. The thresholds here are
ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bild.decoding.acceptance import Judgement, Reading, WithinDistance, keep_near
from bild.decoding.distances import METRICS, MetricName, total_variation


@dataclass(frozen=True)
class KeyTokens:
    """Keep a key token if the large model would write it, any other if it is near enough. Not lossless.

    A token ``x`` is key if ``|log p_L(x) − log p_S(x)| ≥ surprise_gap``, if the large model's likeliest token is ahead
    of its second by ``top_gap`` or more, or if the models' total variation is ``variation`` or more.

    Args:
        threshold: distance up to which other tokens stay, in the unit of the metric, 0…∞; lower rolls back more.
        metric: of that distance, one of the drafted token alone: ``"nll"``, ``"margin"`` or ``"rank"``.
        surprise_gap: nats, 0…∞; lower makes more tokens key: slower, nearer to large. 0: all.
        top_gap: 0…1, or inf: never; likewise.
        variation: 0…1, or None: it is not looked at, which a verifier elsewhere insists on.

    Raises:
        ValueError: a value out of range.
    """

    threshold: float = METRICS["nll"].default
    metric: MetricName = "nll"
    surprise_gap: float = 1.0
    top_gap: float = 0.9
    variation: float | None = None

    def __post_init__(self) -> None:
        if WithinDistance(self.threshold, self.metric).needs_draft_logits:
            raise ValueError(f"metric is {self.metric!r}; key tokens take nll, margin or rank")
        for name in ("surprise_gap", "top_gap", "variation"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; allowed is 0 or more (inf: it makes no token key)")

    @property
    def lossless(self) -> bool:
        return False

    @property
    def needs_draft_logits(self) -> bool:
        return True

    def judge(self, reading: Reading) -> Judgement:
        assert reading.draft_logits is not None, "the drafter must record its logits"
        small = reading.draft_logits.log_softmax(-1).gather(-1, reading.drafted[..., None])[..., 0]
        return self.judged(reading, -small)

    def judged(self, reading: Reading, surprise: Tensor) -> Judgement:
        """Judge a draft of which it is known how surprised the small model was.

        Args:
            reading: of the draft.
            surprise: ``−log p_S(x)`` of each drafted token ``[B, T]``, nats.
        """
        own, key = reading.own(), self._key(reading, surprise)
        near = keep_near(reading, reading.distance(self.metric), self.threshold)
        return Judgement(torch.where(key, own == reading.drafted, near.keep), own, near.distance)

    def _key(self, reading: Reading, surprise: Tensor) -> Tensor:
        gap = (reading.distance("nll") - surprise).abs()
        # What both models forbid surprises neither more than the other.
        key = gap.nan_to_num(0.0, posinf=math.inf) >= self.surprise_gap
        if self.top_gap < 1 and reading.logits.shape[-1] > 1:
            first, second = reading.logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
            key = key | (first - second >= self.top_gap)
        if self.variation is not None and reading.draft_logits is not None:
            key = key | (total_variation(reading.logits, reading.draft_logits) >= self.variation)
        return key
