"""How surprised a model is by a text that somebody has written: its perplexity, read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from bild.decoding.scores import widened

if TYPE_CHECKING:
    from bild.models import Model

PIECE = 32
"""Tokens scored in one pass: logits of a whole text over a large vocabulary would take gigabytes."""


def surprise_of(model: Model, source: Sequence[int], prompt: Sequence[int], tokens: Sequence[int]) -> float:
    """Minus the logarithm of the probability that a model gives to a continuation, in nats.

    Of the model's own distribution: temperature, penalties and forbidden tokens have no part in it.

    Args:
        model: that reads.
        source: encoder input ids; empty for a decoder-only model.
        prompt: decoder tokens before the continuation, at least one.
        tokens: the continuation, an end token included; empty: 0.

    Raises:
        ScoreError: the model's scores are not numbers.
    """
    if not tokens:
        return 0.0
    scorer, total = model.start([source]), 0.0
    with torch.inference_mode():
        if len(prompt) > 1:
            scorer.extend([list(prompt[:-1])])
        read = [prompt[-1], *tokens[:-1]]
        for at in range(0, len(read), PIECE):
            piece, wanted = read[at : at + PIECE], tokens[at : at + PIECE]
            logits = scorer.extend([piece], last=len(piece))[0]
            targets = torch.tensor(wanted, device=logits.device)
            wide = widened(logits)
            total += float(cross_entropy(wide, targets, reduction="sum"))
    return _number(total)


def perplexity(surprise: float, tokens: int) -> float | None:
    """The exponential of the mean surprise of a token; None of no tokens, infinite where that is no number."""
    if not tokens:
        return None
    mean = surprise / tokens
    return math.exp(mean) if mean < math.log(1e300) else math.inf


def _number(total: float) -> float:
    from bild.errors import ScoreError

    if math.isnan(total):
        raise ScoreError("the large model's scores are not numbers (NaN); load it in a wider dtype, such as float32")
    return total
