"""How far the small model's proposal is from the large model: ``d(p_S, p_L)``, position by position.

``p_L`` and ``p_S`` are softmax of the models' logits after processors that forbid tokens, before temperature,
top-k and top-p. A larger distance is further apart; every distance is 0 or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Metric(NamedTuple):
    """A distance ``[B, T]``."""

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Of the large model's logits ``[B, T, V]``, the drafted tokens ``[B, T]`` and the small model's logits."""
    default: float
    """Threshold where none is given."""
    needs_draft_logits: bool = False
    """Whether it reads the small model's logits."""


def negative_log_likelihood(logits: Tensor, drafted: Tensor) -> Tensor:
    """``−log p_L(x)`` of the drafted token ``x``, nats, 0…∞ (sections 3.4 and 7.1.2)."""
    return -_of_token(logits.log_softmax(-1), drafted)


def probability_margin(logits: Tensor, drafted: Tensor) -> Tensor:
    """``max_y p_L(y) − p_L(x)``, 0…1; 0 where the large model would choose ``x`` itself."""
    p = logits.softmax(-1)
    return p.amax(-1) - _of_token(p, drafted)


def rank(logits: Tensor, drafted: Tensor) -> Tensor:
    """How many tokens the large model finds likelier than ``x``, 0…V − 1."""
    return (logits > logits.gather(-1, drafted.unsqueeze(-1))).sum(-1).to(logits.dtype)


def kl_divergence(logits: Tensor, draft_logits: Tensor) -> Tensor:
    """``KL(p_S ‖ p_L) = Σ_y p_S(y) log(p_S(y) / p_L(y))``, nats, 0…∞."""
    return _relative_entropy(draft_logits.log_softmax(-1), logits.log_softmax(-1))


def jensen_shannon_distance(logits: Tensor, draft_logits: Tensor) -> Tensor:
    """``√(½ KL(p_S ‖ m) + ½ KL(p_L ‖ m))`` in bits, ``m = ½ (p_S + p_L)``, 0…1; symmetric."""
    one, other = draft_logits.log_softmax(-1), logits.log_softmax(-1)
    middle = torch.logaddexp(one, other) - math.log(2)
    nats = (_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2
    return (nats / math.log(2)).clamp(0, 1).sqrt()


def total_variation(logits: Tensor, draft_logits: Tensor) -> Tensor:
    """``½ Σ_y |p_S(y) − p_L(y)|``, 0…1: how often rejection sampling would roll back."""
    return (draft_logits.softmax(-1) - logits.softmax(-1)).abs().sum(-1) / 2


METRICS = {
    "nll": Metric(lambda large, x, small: negative_log_likelihood(large, x), 2.0),
    "margin": Metric(lambda large, x, small: probability_margin(large, x), 0.5),
    "rank": Metric(lambda large, x, small: rank(large, x), 2.0),
    "kl": Metric(lambda large, x, small: kl_divergence(large, small), 1.0, needs_draft_logits=True),
    "js": Metric(lambda large, x, small: jensen_shannon_distance(large, small), 0.5, needs_draft_logits=True),
    "tv": Metric(lambda large, x, small: total_variation(large, small), 0.5, needs_draft_logits=True),
}
MetricName = Literal["nll", "margin", "rank", "kl", "js", "tv"]


def _of_token(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _relative_entropy(one: Tensor, other: Tensor) -> Tensor:
    """``Σ_y p(y) (log p(y) − log q(y))`` of log probabilities; a token that ``p`` forbids adds nothing."""
    terms = one.exp() * (one - other)
    return torch.where(one == -math.inf, 0.0, terms).sum(-1).clamp(min=0)
