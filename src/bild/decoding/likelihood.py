"""How likely the tokens of a text are, where a request asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from bild.decoding.scores import Scores

LOWEST = -9999.0
"""What stands for the logarithm of 0, which JSON lacks; OpenAI's number."""


class Scored(NamedTuple):
    """A token, and how likely it was.

    Distributions are the model's own: after what forbids or penalises tokens, before temperature, top-k and top-p.
    """

    token: int
    logprob: float
    """Natural logarithm of its probability, -9999…0."""
    likeliest: tuple[tuple[int, float], ...]
    """The likeliest tokens in its place and their logarithms, the likeliest first."""


def scored(scores: Scores, row: int, places: Sequence[int], tokens: Sequence[int], alternatives: int) -> list[Scored]:
    """How likely some tokens of one row are; one transfer to the host, or two with alternatives.

    Args:
        scores: of a batch ``[B, T, V]``.
        row: of the batch.
        places: positions of the row, negative ones from the end.
        tokens: one a place.
        alternatives: how many of the likeliest tokens are named beside, 0…
    """
    logits, total = scores.logits[row, places], scores.summary.log_total[row, places][:, None]
    own = torch.tensor(tokens, device=logits.device)[:, None]
    logprobs = (logits.gather(-1, own) - total).clamp(LOWEST, 0)[:, 0].tolist()
    if not alternatives:
        return [Scored(token, logprob, ()) for token, logprob in zip(tokens, logprobs, strict=True)]
    best = logits.topk(min(alternatives, logits.shape[-1]))
    values, ids = (best.values - total).clamp(LOWEST, 0).tolist(), best.indices.tolist()
    likeliest = [tuple(zip(each, value, strict=True)) for each, value in zip(ids, values, strict=True)]
    return [Scored(*each) for each in zip(tokens, logprobs, likeliest, strict=True)]
