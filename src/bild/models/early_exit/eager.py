"""An early exit on dynamic caches, uncompiled.

The hidden states at the exit are kept as one more layer of the cache below it, half of them as its keys and half
as its values: whatever rolls, crops or selects rows of that cache does so to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from bild.decoding import Scorer
from bild.errors import LoadError, one_line
from bild.models.eager import EagerModel, disagree
from bild.models.eager_scorer import EagerScorer
from bild.models.early_exit.shared import SplitScorer
from bild.models.early_exit.split import Split, split, states_of, without_head


class ExitModel(EagerModel):
    """The first layers of a network, its norm and its head, as the small model."""

    def __init__(self, parts: Split) -> None:
        self.parts = parts
        super().__init__(parts.small)

    def start(self, sources: Sequence[Sequence[int]]) -> EagerLower:
        """Begin a batch of its own; see :meth:`EagerModel.start`."""
        return EagerLower(self, sources)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """The small side of the batch that the whole network has begun."""
        return large.share() if isinstance(large, SplitScorer) else self.start(sources)


class SplitModel(EagerModel):
    """A network that reads in two pieces, so that an early exit may share the first.

    Args:
        network: as for :class:`EagerModel`.
        count: decoder layers below the exit, 1 … layers − 1.

    Raises:
        LoadError: as :class:`EagerModel`; too few or too many layers; a network whose pieces do not add up to it.
    """

    def __init__(self, network: PreTrainedModel, count: int) -> None:
        super().__init__(network)
        self.parts = split(network, count)
        self.small = ExitModel(self.parts)
        self._compare()

    def start(self, sources: Sequence[Sequence[int]]) -> SplitScorer:  # type: ignore[override]
        """Begin a batch; see :meth:`EagerModel.start`."""
        lower = self.small.start(sources)
        return SplitScorer(lower, EagerUpper(self, lower))

    def _compare(self) -> None:
        """The pieces must say what the whole says, at the exit and above it, also on top of their caches."""
        source, tokens = self._probe_tokens()
        reason = "its layers above the exit do not go on from its hidden states"
        try:
            right = all(self._agrees(model, source, tokens) for model in (self, self.small))
        except Exception as error:
            right, reason = False, one_line(error)
        if not right:
            name = type(self.network).__name__
            raise LoadError(f"{name} cannot exit early ({reason}); name a small checkpoint instead")

    @staticmethod
    def _agrees(model: EagerModel, source: list[int], tokens: list[int]) -> bool:
        expected = EagerScorer(model, [source]).extend([tokens], last=5)
        whole, pieces = model.start([source]), model.start([source])
        # The same kernels on the same numbers: learned positions added twice would be a small difference, too.
        if disagree(expected, whole.extend([tokens], last=5), share=0.01):
            return False
        pieces.extend([tokens[:2]])
        return not disagree(expected[:, 2:], pieces.extend([tokens[2:]], last=3))


class EagerLower(EagerScorer):
    """The layers below; see :class:`~bild.models.early_exit.shared.LowerScorer`."""

    def follow(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read new tokens and score none."""
        self._extend(tokens, last=0)

    def states(self, lengths: Sequence[int], width: int) -> Tensor:
        """Hidden states ``[B, width, D]`` of each row's tokens from ``lengths[b]`` on; any behind the last one read."""
        begins = [self._size - tail - own for tail, own in zip(self._tails, self._lengths, strict=True)]
        firsts = [begin + length for begin, length in zip(begins, lengths, strict=True)]
        columns = [[min(first + t, self._size - 1) for t in range(width)] for first in firsts]
        index = torch.tensor(columns, device=self.model.device)[..., None]
        layer = self._cache.layers[-1]
        return torch.cat([half[:, 0].take_along_dim(index, dim=1) for half in (layer.keys, layer.values)], -1)

    def _logits(self, inputs: dict[str, Any], kept: int | Tensor) -> Tensor:
        asked = kept if isinstance(kept, int) else len(kept)
        with states_of(self._network) as states, nullcontext() if asked else without_head(self._network):
            logits = super()._logits(inputs, kept)
        first, second = states[0][:, None].chunk(2, dim=-1)
        self._cache.update(first, second, self.model.parts.count)
        return logits


class EagerUpper(EagerScorer):
    """The layers above, reading the hidden states of the layers below."""

    def __init__(self, model: SplitModel, lower: EagerLower) -> None:
        super().__init__(model, lower._sources)
        self._network, self._lower = model.parts.upper, lower

    def _new(self, tokens: Sequence[Sequence[int]], width: int) -> Tensor:
        return self._lower.states(self._lengths, width)

    def _source(self) -> tuple[ModelOutput, Tensor | None]:
        return self._lower._source()
