"""A model of n-grams as a drafter: no network, and yet a distribution of its own.

Staged speculative decoding (Spector and Ré, arXiv 2308.04623) drafts for the draft model with a Katz trigram that was
counted in text of the draft model. Beneath a :class:`~bild.decoding.Cascade` with the small model this is their chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from bild.decoding.draft import Writer
from bild.decoding.drafters.model import ModelDrafter
from bild.decoding.drafters.ngrams import Ngrams
from bild.decoding.scores import Scores, Summary


class NgramScorer:
    """A :class:`~bild.decoding.Scorer` that remembers each row's tokens, and scores by counts.

    Args:
        ngrams: the counts.
        rows: of the batch, 1…
    """

    def __init__(self, ngrams: Ngrams, rows: int) -> None:
        self.ngrams = ngrams
        self._read: list[list[int]] = [[] for _ in range(rows)]

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self._read]

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        logits = torch.zeros(len(tokens), last, self.ngrams.vocab_size)
        for b, new in enumerate(tokens):
            row = self._read[b]
            row += new
            for back in range(min(last, len(new))):
                end = len(row) - back
                context = row[max(0, end - self.ngrams.order + 1) : end]
                logits[b, -1 - back] = self.ngrams.probabilities(context).log()
        return logits

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        return Scores.of(self.extend(tokens, last))

    def truncate(self, lengths: Sequence[int]) -> None:
        for row, length in zip(self._read, lengths, strict=True):
            del row[length:]

    def keep(self, rows: Sequence[int]) -> None:
        self._read = [list(self._read[b]) for b in rows]

    def join(self, other: Self) -> None:
        self._read += other._read


class Backoff(ModelDrafter):
    """Writes what the counts find likeliest, or draws from them, until they are unsure.

    It writes as the small model does: the row's rules say when it hands over and how it picks, and rejection sampling
    sees the distribution that it drew from.

    Args:
        ngrams: counts of the pair's vocabulary.
        rows: of the batch, 1…
        name: what its tokens are signed with.
    """

    def __init__(self, ngrams: Ngrams, rows: int, name: Writer = "backoff") -> None:
        super().__init__(NgramScorer(ngrams, rows), name)
