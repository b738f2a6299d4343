"""Rules that compare two models, of which the verifier knows one number a token of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bild.decoding import (
    Acceptance,
    Choice,
    Draft,
    ExactMatch,
    History,
    Judgement,
    Reading,
    RejectionSampling,
    TypicalAcceptance,
    Use,
    WithinDistance,
)
from bild.decoding.acceptance import residual
from bild.decoding.choice import draw
from bild.decoding.distances import METRICS
from bild.decoding.key_tokens import KeyTokens
from bild.errors import InputError

ALLOWED = (
    "exact_match, rejection_sampling, typical, key_tokens without variation, and within_distance by nll, margin or rank"
)
NUMBERS, HELD = "numbers of the device", "distributions of the verifier"
"""Where a row remembers what a round brought, and what a device may still ask a token of."""


def check_rule(rule: Acceptance) -> None:
    """Whether drafts can be judged by this rule with at most one number a token of the drafter.

    Raises:
        InputError: they cannot, and what can.
    """
    near = type(rule) is WithinDistance and not METRICS[rule.metric].needs_draft_logits
    near = near or (type(rule) is KeyTokens and rule.variation is None)
    if not (near or type(rule) in (ExactMatch, TypicalAcceptance) or (_rejects(rule) and rule.lossless)):
        raise InputError(
            f"the policy judges drafts by {_named(rule)}, which needs more of the small model than a verifier "
            f"elsewhere is told; allowed are {ALLOWED}"
        )


def at_verifier(rule: Acceptance) -> Acceptance:
    """The rule as a verifier applies it."""
    if type(rule) is KeyTokens:
        return KeyTokensByNumber(rule)
    return RejectionByNumber() if _rejects(rule) else rule


def numbers_of(rule: Acceptance, choice: Choice, draft: Draft, kind: torch.dtype) -> list[float]:
    """What the verifier has to be told of each draft token, on the device; nothing for most rules.

    Args:
        rule: of the row.
        choice: how both models pick their tokens.
        draft: with the logits its tokens were picked from.
        kind: in which the verifier would read them.
    """
    if not asks(rule, choice) or draft.certain or not draft.tokens:
        return []
    logits = torch.stack(draft.logits).to(kind)
    q = choice.probabilities(logits) if _rejects(rule) else logits.softmax(-1)
    tokens = torch.tensor(draft.tokens, device=q.device)
    return [float(each) for each in q.gather(-1, tokens[:, None])[:, 0].tolist()]


def asks(rule: Acceptance, choice: Choice) -> bool:
    """Whether a verifier needs to know how likely the draft was."""
    return type(rule) is KeyTokens or (_rejects(rule) and choice.draws)


@dataclass(frozen=True)
class RejectionByNumber:
    """:class:`~bild.decoding.RejectionSampling` of drafts of which only the probability of each token is known.

    What stands is decided by those numbers; what replaces the first token that does not is drawn when the device has
    told its distribution there (:func:`replaced`). Where tokens are not drawn neither is needed.
    """

    @property
    def lossless(self) -> bool:
        return True

    @property
    def needs_draft_logits(self) -> bool:
        return False

    def judge(self, reading: Reading) -> Judgement:
        if not reading.choice.draws:
            return RejectionSampling().judge(reading)
        p = reading.choice.probabilities(reading.logits)
        q = _laid_out(reading.rows, p)
        ratio = p.gather(-1, reading.drafted.unsqueeze(-1)).squeeze(-1) / q
        keep = reading.uniforms(Use.ACCEPT) < ratio
        for row, own, count in zip(reading.rows, p, reading.counts, strict=True):
            row.memory[HELD] = own[-count:] if count else None
        # Right behind a draft that is kept; elsewhere the residual is not known yet.
        return Judgement(keep, draw(p, reading.uniforms(Use.REPLACE)), torch.zeros_like(q))


@dataclass(frozen=True)
class KeyTokensByNumber:
    """:class:`~bild.decoding.key_tokens.KeyTokens` of drafts of which only the probability of each token is known.

    Args:
        rule: what is done with it.
    """

    rule: KeyTokens

    @property
    def lossless(self) -> bool:
        return False

    @property
    def needs_draft_logits(self) -> bool:
        return False

    def judge(self, reading: Reading) -> Judgement:
        return self.rule.judged(reading, -_laid_out(reading.rows, reading.logits).log())


def replaced(row: History, position: int, p: Tensor, q: Tensor) -> int:
    """The token drawn where a draft token was rejected.

    Args:
        row: whose random numbers decide.
        position: of the token, counted from the first prompt token.
        p: the verifier's distribution ``[V]``.
        q: the device's ``[V]``.
    """
    weights, _ = residual(p, q.to(p))
    uniform = torch.tensor([[row.uniform(position, Use.REPLACE)]], dtype=torch.float64)
    return int(draw(weights[None, None], uniform))


def _laid_out(rows: Sequence[History], like: Tensor) -> Tensor:
    """The numbers of each row's draft ``[B, T]``, where its tokens stand; 1 elsewhere."""
    width = like.shape[1]
    table = [row.memory.get(NUMBERS) or () for row in rows]
    filled = [[1.0] * (width - 1 - len(own)) + [*own, 1.0] for own in table]
    return torch.tensor(filled, dtype=like.dtype, device=like.device)


def _rejects(rule: Any) -> bool:
    return type(rule) is RejectionSampling


def _named(rule: Acceptance) -> str:
    name = type(rule).__name__
    return f"{name} ({rule.metric})" if isinstance(rule, WithinDistance) else name
