"""Which prefix of a draft survives the large model, and what replaces the first loser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from bild.decoding.choice import Choice, draw
from bild.decoding.distances import METRICS, MetricName
from bild.decoding.hand_over import entropy
from bild.decoding.history import History, Use, uniforms
from bild.decoding.scores import Scores
from bild.decoding.transfer import to_device


class Reading(NamedTuple):
    """A batch of drafts and what the large model made of them.

    Tensors are right-aligned: row ``b`` uses its last ``counts[b]`` positions, the last of which follows
    the whole draft: there is nothing to keep there, only a bonus to write.
    """

    scores: Scores
    """The large model's, of all positions ``[B, T, V]``."""
    drafted: Tensor
    """Draft tokens ``[B, T]``; ``drafted[b, -1]`` holds no meaning."""
    draft_logits: Tensor | None
    """The small model's ``[B, T, V]``, if the rule needs them."""
    rows: Sequence[History]
    counts: Sequence[int]
    choice: Choice
    """How the large model picks its tokens."""
    level: int = 0
    """Whose random numbers decide, see :meth:`~bild.decoding.history.History.uniform`."""

    @property
    def logits(self) -> Tensor:
        """The large model's ``[B, T, V]``."""
        return self.scores.logits

    def likeliest(self) -> Tensor:
        """The token ``[B, T]`` of the highest logit; the first of equals."""
        return self.scores.summary.likeliest

    def own(self) -> Tensor:
        """The tokens ``[B, T]`` the large model itself picks.

        With the numbers of level 0 at every level, so that models that agree pick the same; a draw of one's own is no
        test, and may share them.
        """
        return self.choice(self.scores, self.rows, self.counts)

    def distance(self, metric: MetricName) -> Tensor:
        """``d(p_S, p_L)`` of each drafted token ``[B, T]``."""
        if metric == "nll":
            # One number of the vocabulary instead of all of them.
            return self.scores.summary.log_total - self.logits.gather(-1, self.drafted[..., None])[..., 0]
        return METRICS[metric].of(
            self.logits, self.drafted, self.logits if self.draft_logits is None else self.draft_logits
        )

    def uniforms(self, use: Use) -> Tensor:
        """A random number for every position ``[B, T]``."""
        numbers = uniforms(self.rows, self.counts, self.logits.shape[1], use, self.level)
        device = self.logits.device
        # Apple's GPUs have no float64.
        return to_device(numbers.float() if device.type == "mps" else numbers, device)


class Judgement(NamedTuple):
    """What the large model says of a draft; every field ``[B, T]``, position by position."""

    keep: Tensor
    """Whether the drafted token may stay if all before it do."""
    replacement: Tensor
    """The large model's own token for the position: correction or bonus."""
    distance: Tensor
    """``d(p_S, p_L)``; larger is further apart. Zero where the rule measures none."""


class Acceptance(Protocol):
    """Judges all positions of a draft at once, without looking at the host."""

    @property
    def lossless(self) -> bool:
        """Whether the text has the large model's own distribution, if the end of a text is judged too."""

    @property
    def needs_draft_logits(self) -> bool:
        """Whether it reads the small model's distribution, not only its tokens."""

    def judge(self, reading: Reading) -> Judgement:
        """Judge every position of the drafts."""


@dataclass(frozen=True)
class WithinDistance:
    """BiLD's rollback policy: roll back the first token with ``d(p_S, p_L) > threshold`` (section 3.4).

    A token the large model would itself choose is never rolled back, whatever its distance. Not lossless.

    Args:
        threshold: in the unit of the metric, 0…∞; lower rolls back more: slower, nearer to large.
        metric: of :mod:`bild.decoding.distances`. Of the drafted token under the large model: ``"nll"``
            (the paper's; nats, 0…∞), ``"margin"`` (0…1), ``"rank"`` (0…V − 1). Of both distributions:
            ``"kl"`` (nats, 0…∞), ``"js"`` (0…1), ``"tv"`` (0…1).

    Raises:
        ValueError: threshold out of range or unknown metric.
    """

    threshold: float
    metric: MetricName = "nll"

    def __post_init__(self) -> None:
        if math.isnan(self.threshold) or self.threshold < 0:
            raise ValueError(f"rollback_threshold is {self.threshold}; allowed is 0 or more (inf: never roll back)")
        if self.metric not in METRICS:
            raise ValueError(f"metric is {self.metric!r}; allowed are {', '.join(METRICS)}")

    @property
    def lossless(self) -> bool:
        return False

    @property
    def needs_draft_logits(self) -> bool:
        return METRICS[self.metric].needs_draft_logits

    def judge(self, reading: Reading) -> Judgement:
        return keep_near(reading, reading.distance(self.metric), self.limit(reading))

    def limit(self, reading: Reading) -> float | Tensor:
        """The largest distance that is kept: one number, or one a row ``[B, 1]``."""
        return self.threshold


@dataclass(frozen=True)
class TypicalAcceptance:
    """Keep what is typical of the large model: ``p_L(x) ≥ min(ε, δ exp(−H(p_L)))``.

    The less certain the large model is, the less likely a token may be (Medusa, Cai et al. 2024, section
    3.3.1; Hewitt et al. 2022). The distance reported is ``−log p_L(x)``. Not lossless.

    Args:
        epsilon: a token at least this likely is always kept, 0…1; higher rolls back more.
        delta: share of ``exp(−H)``, 0…1; higher rolls back more.

    Raises:
        ValueError: a value out of range.
    """

    epsilon: float = 0.09
    delta: float = 0.3

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed is 0 to 1")

    @property
    def lossless(self) -> bool:
        return False

    @property
    def needs_draft_logits(self) -> bool:
        return False

    def judge(self, reading: Reading) -> Judgement:
        least = (self.delta * (-entropy(reading.logits)).exp()).clamp(max=self.epsilon)
        return keep_near(reading, reading.distance("nll"), -least.log())


@dataclass(frozen=True)
class ExactMatch:
    """Keep what the large model would itself have written. Lossless.

    Greedy: the text is the large model's own. Sampling: both models draw with the random number of the
    position, so it is what the large model alone draws with the same seed.
    """

    @property
    def lossless(self) -> bool:
        return True

    @property
    def needs_draft_logits(self) -> bool:
        return False

    def judge(self, reading: Reading) -> Judgement:
        own = reading.own()
        return Judgement(own == reading.drafted, own, torch.zeros_like(own, dtype=torch.float32))


@dataclass(frozen=True)
class RejectionSampling:
    """Speculative sampling: keep ``x`` with probability ``min(1, p_L(x) / p_S(x))``, else draw from the residual.

    The residual is ``max(0, p_L − p_S)``, normalised; both distributions are those the models draw from
    (after temperature, top-k, top-p), so the text has exactly the large model's distribution (Leviathan et al.
    2023, algorithm 1; Chen et al. 2023). With greedy decoding it is exact match. The distance reported is the total
    variation of what the models draw from, 0…1: how often a token of this position is replaced.

    Args:
        weight: of the large model in a blend of both, 0…1. 1: lossless. Below, the text follows
            ``v = w p_L + (1 − w) p_S``: more is kept, the small model's tastes show. A token is kept with
            probability ``min(1, v(x) / p_S(x))``; greedy: if it is the likeliest under ``v`` (transformers'
            ``assistant_ensemble_weight``).

    Raises:
        ValueError: weight out of range.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight is {self.weight}; allowed is 0 to 1")

    @property
    def lossless(self) -> bool:
        return self.weight == 1

    @property
    def needs_draft_logits(self) -> bool:
        return True

    def judge(self, reading: Reading) -> Judgement:
        return self._draw(reading) if reading.choice.draws else self._match(reading)

    def _match(self, reading: Reading) -> Judgement:
        if self.weight == 1:
            # Probabilities of neighbouring logits may round to one number, so it is the logits that are compared.
            own = reading.likeliest()
            return _as_one(own, reading)
        p, q = reading.logits.softmax(-1), _small(reading).softmax(-1)
        blend = self.weight * p + (1 - self.weight) * q
        # Nothing was drafted behind the draft: the bonus is the large model's own.
        blend[:, -1] = p[:, -1]
        return _as_one(blend.argmax(-1), reading)

    def _draw(self, reading: Reading) -> Judgement:
        p = reading.choice.probabilities(reading.logits)
        q = reading.choice.probabilities(_small(reading))
        q[:, -1] = 0
        drafted = reading.drafted.unsqueeze(-1)
        ratio = (p.gather(-1, drafted) / q.gather(-1, drafted)).squeeze(-1)
        keep = reading.uniforms(Use.ACCEPT) < 1 - self.weight + self.weight * ratio
        weights, apart = residual(p, q)
        return Judgement(keep, draw(weights, reading.uniforms(Use.REPLACE)), apart)


def residual(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """What is drawn in place of a rejected token, of distributions ``[…, V]``: weights ``[…, V]``, and how far apart
    the two are ``[…]``, 0…1."""
    left = (p - q).clamp(min=0)
    apart = left.sum(-1, keepdim=True)
    # Equal distributions leave no residual but rounding, and nothing to replace.
    empty = apart <= torch.finfo(left.dtype).tiny
    return torch.where(empty, p, left), apart[..., 0].clamp(max=1)


WRITES_ITS_OWN = (ExactMatch, RejectionSampling, TypicalAcceptance, WithinDistance)
"""Rules by which, where nothing was drafted and nothing is drawn, the large model's likeliest token is written."""


def _as_one(own: Tensor, reading: Reading) -> Judgement:
    """Judged by a choice without chance: either the same token or all apart."""
    same = own == reading.drafted
    return Judgement(same, own, (~same).float())


def keep_near(reading: Reading, distance: Tensor, limit: float | Tensor) -> Judgement:
    """Keep what is within a distance, and what the large model would itself choose."""
    own = reading.own()
    keep = (distance <= limit) | (own == reading.drafted)
    if reading.choice.draws:
        keep |= reading.likeliest() == reading.drafted
    return Judgement(keep, own, distance)


def _small(reading: Reading) -> Tensor:
    assert reading.draft_logits is not None, "the drafter must record its logits"
    return reading.draft_logits
