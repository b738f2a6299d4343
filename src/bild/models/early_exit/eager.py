"""An early exit on dynamic storage, uncompiled.

The hidden states at the exit are kept as one more layer of the storage below it, half of them as its keys and half
as its values: whatever moves, copies or forgets rows of that storage does so to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, EncoderDecoderCache, PreTrainedModel

from bild.decoding import Scorer
from bild.errors import LoadError, one_line
from bild.models.cache import Shape
from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import EagerScorer
from bild.models.eager.sources import Encoded, Sources
from bild.models.eager.states import HeldStates, TakingScorer, half_of_states
from bild.models.early_exit.shared import SplitScorer
from bild.models.early_exit.split import split
from bild.models.passes import Placed
from bild.models.probing import disagree
from bild.models.seams import own_modules

EXACT = 0.01
"""Share of the spread of logits by which two computations by the same kernels may differ. It is small because learned
positions that are added twice change logits only a little, too."""


class ExitModel(EagerModel):
    """The first layers of a network, its norm and its head, as the small model.

    Args:
        whole: the network.
        count: its decoder layers below the exit.
    """

    def __init__(self, whole: PreTrainedModel, count: int) -> None:
        self.whole, self.count = whole, count
        super().__init__(split(whole, count).small)

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> EagerLower:
        """Begin a batch of its own; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return EagerLower(self, sources, encoded)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """The small side of the batch that the whole network has begun."""
        return large.share() if isinstance(large, SplitScorer) else self.start(sources)

    @property
    def half(self) -> Shape:
        """Of half of the hidden states at the exit."""
        return half_of_states(self)

    def _origin(self, network: PreTrainedModel) -> PreTrainedModel:
        return self.whole

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.whole, self.count

    def _copy(self) -> None:
        self.parts = split(self.whole, self.count)
        self.network = self.parts.small
        super()._copy()


class SplitModel(EagerModel):
    """A network that reads in two pieces, so that an early exit may share the first.

    Args:
        network: as for :class:`EagerModel`.
        count: decoder layers below the exit, 1 … layers − 1.

    Raises:
        LoadError: as :class:`EagerModel`; too few or too many layers; a network whose pieces do not add up to it.
    """

    small: ExitModel
    """The layers below, as a model of their own."""

    def __init__(self, network: PreTrainedModel, count: int) -> None:
        super().__init__(network)
        if self.switches:
            raise LoadError(
                f"{type(network).__name__} changes its positions with the length of a text and cannot exit early; "
                "name a small checkpoint"
            )
        self.small = ExitModel(network, count)
        self._copy()
        self._compare()

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.origin, self.small.count

    @property
    def parts(self) -> Any:
        """The pieces; see :class:`~bild.models.early_exit.split.Split`."""
        return self.small.parts

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> SplitScorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        lower = self.small.start(sources, encoded)
        return SplitScorer(lower, EagerUpper(self, lower))

    def _copy(self) -> None:
        super()._copy()
        # There are none yet while the whole network is tried.
        if "small" in self.__dict__:
            self.small.refresh()
            self.upper = own_modules(self.parts.upper)

    def _compare(self) -> None:
        """The pieces must say what the whole says, at the exit and above it, also on top of their caches."""
        source, tokens = self.probe_tokens()
        reason = "its layers above the exit do not go on from its hidden states"
        try:
            right = self._agrees(source, tokens)
        except Exception as error:
            right, reason = False, one_line(error)
        if not right:
            name = type(self.network).__name__
            raise LoadError(f"{name} cannot exit early ({reason}); name a small checkpoint instead")

    def _agrees(self, source: list[int], tokens: list[int]) -> bool:
        """Whether both read the same pieces alike.

        The same pieces, because then the same kernels work on the same numbers and rounding makes no difference,
        however many layers there are.
        """
        for sizes in ([len(tokens)], [2, len(tokens) - 2]):
            whole, pieces = EagerScorer(self, [source]), self.start([source])
            for size in sizes:
                new, tokens = tokens[:size], tokens[size:] + tokens[:size]
                if disagree(whole.extend([new], size), pieces.extend([new], size), EXACT):
                    return False
        return True


class EagerLower(HeldStates, TakingScorer):
    """The layers below; see :class:`~bild.models.early_exit.shared.LowerScorer`."""

    model: ExitModel

    def follow(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read new tokens and score none."""
        self._extend(tokens, 0)

    def _shapes(self, model: EagerModel) -> Sequence[Shape]:
        assert isinstance(model, ExitModel)
        middle = len(model.shapes) // 2
        return [*model.shapes[:middle], model.half, *model.shapes[middle:], model.half]

    def _take(self, states: Tensor, past: Cache) -> None:
        own: Any = past.self_attention_cache if isinstance(past, EncoderDecoderCache) else past
        own.layers[-1].update(*states[:, None].chunk(2, dim=-1))


class EagerUpper(EagerScorer):
    """The layers above, reading the hidden states of the layers below."""

    def __init__(self, model: SplitModel, lower: EagerLower) -> None:
        self._lower, self._split = lower, model
        super().__init__(model, [[]] * len(lower.lengths))

    def above(self, lower: EagerLower) -> None:
        """Read the hidden states of these layers from now on."""
        self._lower = lower

    def _modules(self, model: EagerModel) -> PreTrainedModel:
        return self._split.upper

    def _shapes(self, model: EagerModel) -> Sequence[Shape]:
        middle, below = len(model.shapes) // 2, self._split.parts.count
        return [*model.shapes[below:middle], *model.shapes[middle + below :]]

    def _look_up(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | Encoded | None) -> Sources:
        below = self._lower.sources
        assert below is not None
        width = self.model.config.get_text_config(decoder=True).hidden_size
        return Sources(self.network, below.encoded, hidden=width, borrowed=True)

    def _together(self, tokens: Sequence[Sequence[int]], row: int | None) -> Tensor:
        begin = self._lengths[0 if row is None else row]
        columns = torch.arange(begin, begin + len(tokens[0]), device=self.model.device)
        return self._lower.states(columns.expand(len(tokens), -1), row)

    def _apart(self, new: Placed, row: int | None) -> Tensor:
        return self._lower.states(new.positions, row)
