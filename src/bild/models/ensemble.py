"""Several models that read together and score as one: ``z = z_base + Σ w_i z_i`` of their logits.

With an expert and an anti-expert of weights ``a`` and ``-a`` it is the decoding-time steering of DExperts and of bias
mitigation by small experts (arXiv 2412.01711); with a base of another size, proxy tuning; with the same model that
reads another source, classifier-free guidance. As the large model of a pair it makes steering cheap: the small model
drafts unsteered, and the ensemble has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from bild.decoding import Scorer, Scores, Summary
from bild.decoding.scorer import copied
from bild.decoding.scores import widened
from bild.errors import InputError
from bild.models.protocol import Model


class EnsembleScorer:
    """A scorer whose logits are a weighted sum.

    Args:
        base: counts ``own`` times.
        others: each with its weight, not 0.
        own: weight of the base.
    """

    def __init__(self, base: Scorer, others: Sequence[tuple[Scorer, float]], own: float = 1.0) -> None:
        self.base, self.others, self.own = base, list(others), own

    @property
    def lengths(self) -> list[int]:
        return self.base.lengths

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        logits = self.base.extend(tokens, last)
        if self._alone:
            return logits
        logits = widened(logits)
        total = self.own * logits
        for scorer, weight in self.others:
            total = total + weight * scorer.extend(tokens, last).to(logits.dtype)
        # What the base forbids stays forbidden, whatever the others forbid too.
        return torch.where(logits == -math.inf, logits, total)

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        return self.base.summarize(tokens, last) if self._alone else Scores.of(self.extend(tokens, last))

    def truncate(self, lengths: Sequence[int]) -> None:
        for scorer in self._all:
            scorer.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        for scorer in self._all:
            scorer.keep(rows)

    def join(self, other: Self) -> None:
        for own, more in zip(self._all, other._all, strict=True):
            own.join(more)

    def copy(self, rows: Sequence[int]) -> EnsembleScorer | None:
        """See :class:`~bild.decoding.scorer.Copying`."""
        base, *others = (copied(scorer, rows) for scorer in self._all)
        weighted = [
            (other, weight) for other, (_, weight) in zip(others, self.others, strict=True) if other is not None
        ]
        if base is None or len(weighted) < len(self.others):
            return None
        return EnsembleScorer(base, weighted, self.own)

    @property
    def _alone(self) -> bool:
        """Whether the sum is the base's own logits, to the bit."""
        return not self.others and self.own == 1

    @property
    def _all(self) -> list[Scorer]:
        return [self.base, *(scorer for scorer, _ in self.others)]


class EnsembleModel:
    """Models of one vocabulary that read together.

    Args:
        base: whose configuration the ensemble has; counts once.
        others: each with its weight; of weight 0: it is not asked. The base may be among them.

    Raises:
        InputError: a weight that is no number.
    """

    stands_alone = True

    def __init__(self, base: Model, others: Sequence[tuple[Model, float]]) -> None:
        for _, weight in others:
            if not math.isfinite(weight):
                raise InputError(f"an expert's weight is {weight}; allowed is any finite number")
        self.base, self.others = base, list(others)
        self.network: PreTrainedModel = base.network

    @property
    def vocab_size(self) -> int:
        """Token ids that are scored, from 0 on."""
        return self.base.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        for model in self._all:
            model.vocab_size = size

    @property
    def config(self) -> PreTrainedConfig:
        return self.base.config

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def is_encoder_decoder(self) -> bool:
        return self.base.is_encoder_decoder

    @property
    def is_compiled(self) -> bool:
        return all(model.is_compiled for model in self._all)

    @property
    def batches(self) -> bool:
        return all(model.batches for model in self._all)

    @property
    def max_positions(self) -> int | None:
        return _least([model.max_positions for model in self._all])

    @property
    def max_source_positions(self) -> int | None:
        return _least([model.max_source_positions for model in self._all])

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> EnsembleScorer:
        """Begin a batch; see :meth:`~bild.models.Model.start`."""
        # The base among the others needs no pass of its own.
        own = 1 + sum(weight for model, weight in self.others if model is self.base)
        asked = [(m.start(sources), weight) for m, weight in self.others if weight != 0 and m is not self.base]
        return EnsembleScorer(self.base.start(sources, encoded), asked, own)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> EnsembleScorer:
        """As :meth:`start`."""
        return self.start(sources)

    def is_current(self) -> bool:
        return all(model.is_current() for model in self._all)

    @property
    def _all(self) -> list[Model]:
        return [self.base, *(model for model, _ in self.others)]


class OtherSource:
    """A model that reads one source in place of each row's own.

    Args:
        model: an encoder-decoder.
        source: encoder input ids, at least one.
    """

    def __init__(self, model: Model, source: Sequence[int]) -> None:
        self.model, self.source = model, list(source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch of as many rows."""
        return self.model.start([self.source for _ in sources])


def _least(limits: Sequence[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
