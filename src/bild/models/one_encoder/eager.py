"""A small model that looks up what the large model's encoder has made of the sources, uncompiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from bild.decoding import Scorer
from bild.models.eager import EagerModel
from bild.models.eager.scorer import EagerScorer
from bild.models.one_encoder.comparing import Encoders


class EagerBorrower(EagerModel):
    """The small model of a pair with one encoder; alone it reads sources with its own.

    Args:
        network: as for :class:`EagerModel`.
        lender: the network of the large model.
    """

    def __init__(self, network: PreTrainedModel, lender: PreTrainedModel) -> None:
        self.lender, self.encoders = lender, Encoders(lender, network)
        super().__init__(network)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """The small side of the batch that the large model has begun."""
        self.refresh()
        if isinstance(large, EagerScorer) and large.sources is not None and self.encoders.are_one():
            return self._switching(EagerScorer(self, sources, large.sources.encoded))
        return self.start(sources)

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.origin, self.lender
