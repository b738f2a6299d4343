"""An early exit on static caches, compiled.

The hidden states at the exit are kept as one more layer of the storage below it, half of them as its keys and half
as its values, where the graph of the layers above reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bild.decoding import Scorer
from bild.models.cache import Shape
from bild.models.compiled import compiling
from bild.models.compiled.calling import Graph, Graphs
from bild.models.compiled.graphs import Encode, Read
from bild.models.compiled.model import EXAMPLE, CompiledModel, graph_name, is_recorded
from bild.models.compiled.scorer import CompiledScorer, StatesScorer
from bild.models.compiled.sources import PartOfSources, Sources, part_of
from bild.models.early_exit.eager import ExitModel, SplitModel
from bild.models.early_exit.graphs import ReadLower, ReadUpper, Score
from bild.models.early_exit.shared import SplitScorer
from bild.models.early_exit.split import cut
from bild.models.seams import own_modules


class PartGraphs(Graphs):
    """The passes of some layers of a network, and of its head.

    Args:
        graphs: of the layers; they score nothing.
        own: which of the decoder layers they are.
        score: the graph of the head.
    """

    def __init__(self, graphs: Graphs, own: slice, score: Graph) -> None:
        super().__init__(graphs.uncompiled, graphs.run_read, graphs.run_encode, graphs.device, graphs.is_recorded)
        self.own, self.score = own, score

    def read(self, rows: Tensor, last: int, storage: list[Tensor], source: list[Tensor]) -> Sequence[Tensor]:
        """As :meth:`Graphs.read`; hidden states only where nothing is scored.

        Args:
            rows: as there.
            last: how many positions to score, 0…T.
            storage: as there.
            source: of all decoder layers.
        """
        states = super().read(rows, max(last, 1), storage, part_of(source, self.own))[:1]
        return self.score(list(states)) if last else states


class CompiledPart(CompiledModel):
    """Some layers of a network and its head, compiled.

    Args:
        eager: the same, uncompiled.
        own: which of the decoder layers.
        progress: as for :class:`CompiledModel`.
    """

    def __init__(
        self, eager: ExitModel | SplitModel, own: slice, progress: Callable[[str], None] = compiling.announce
    ) -> None:
        self.eager, self.own = eager, own
        super().__init__(eager.network, progress)

    @property
    def storage(self) -> list[Shape]:
        """Those of the layers, and halves of the hidden states at the exit."""
        small = self.eager if isinstance(self.eager, ExitModel) else self.eager.small
        middle = len(self.shapes) // 2
        keys, values = self.shapes[:middle], self.shapes[middle:]
        return [*keys[self.own], small.half, *values[self.own], small.half]

    @property
    def _has_places(self) -> bool:
        # The halves of hidden states are read beside the keys and values, in the order of the rows.
        return False

    @property
    def writes_alone(self) -> bool:
        """Whether one of its graphs tells the next token: no, the head is another."""
        return False

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return self.scorer(sources) if self.is_compiled else self.eager.start(sources, encoded)

    def _origin(self, network: Any) -> Any:
        return self.eager.origin

    def _copy(self) -> None:
        self.eager.refresh()
        self.network = self.eager.network
        super()._copy()

    def _probe(self) -> None:
        self.batches, self.shapes = self.eager.batches, self.eager.shapes

    def _uncompiled(self, sources: Sequence[Sequence[int]]) -> Scorer:
        return self.eager.start(sources)


class CompiledExitModel(CompiledPart):
    """The first layers of a network, its norm and its head, as the small model."""

    eager: ExitModel

    def __init__(self, eager: ExitModel, progress: Callable[[str], None] = compiling.announce) -> None:
        super().__init__(eager, slice(0, eager.count), progress)

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.eager, self._progress

    def scorer(self, sources: Sequence[Sequence[int]]) -> CompiledLower:
        """A scorer that runs compiled."""
        return CompiledLower(self, sources)

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """The small side of the batch that the whole network has begun."""
        return large.share() if isinstance(large, SplitScorer) else self.start(sources)

    def _reader(self) -> Read:
        return ReadLower(self.modules, self.farthest)

    def _compile(self, progress: Callable[[str], None]) -> PartGraphs:
        whole = self.eager.whole
        name = graph_name(whole)
        encode = self._compile_encode(Encode(own_modules(whole)), f"{name}-encode", progress)
        score = self._compile_score(f"{name}-score", progress)
        source = part_of(self._example_source(encode), self.own) if self.is_encoder_decoder else []
        graphs = self._compile_read(f"{name}-exit{self.eager.count}-lower", source, encode, progress)
        return PartGraphs(graphs, self.own, score)

    @torch.no_grad()
    def _compile_score(self, name: str, progress: Callable[[str], None]) -> Graph:
        layers, width = self.eager.parts.total, self.config.get_text_config(decoder=True).hidden_size
        states = self._integers(self._example_rows, EXAMPLE[1] + 1, width).to(self.dtype)
        module = Score(own_modules(cut(self.eager.whole, layers, layers)))
        if is_recorded(self.device):
            return lambda inputs: module(*inputs)
        return compiling.compiled(module, (states,), (self._varying({1: "K"}),), name=name, progress=progress)


class CompiledSplitModel(CompiledPart):
    """A network that reads in two pieces, so that an early exit may share the first."""

    eager: SplitModel

    def __init__(
        self, eager: SplitModel, small: CompiledExitModel, progress: Callable[[str], None] = compiling.announce
    ) -> None:
        self.small = small
        super().__init__(eager, slice(eager.parts.count, None), progress)

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.eager, self.small, self._progress

    def scorer(self, sources: Sequence[Sequence[int]]) -> SplitScorer:  # type: ignore[override]
        """A scorer that runs compiled."""
        lower = self.small.scorer(sources)
        return SplitScorer(lower, CompiledUpper(self, lower))

    def _copy(self) -> None:
        super()._copy()
        self.small.refresh()

    def _reader(self) -> Read:
        return ReadUpper(self.eager.upper, self.farthest)

    def _compile(self, progress: Callable[[str], None]) -> PartGraphs:
        below = self.small.graphs
        assert isinstance(below, PartGraphs)
        source = part_of(self._example_source(below.run_encode), self.own) if self.is_encoder_decoder else []
        name = f"{graph_name(self.network)}-{last_graph(self.eager.parts.count)}"
        return PartGraphs(self._compile_read(name, source, below.run_encode, progress), self.own, below.score)


def last_graph(count: int) -> str:
    """The graph that is compiled last."""
    return f"exit{count}-upper"


class CompiledLower(CompiledScorer):
    """The layers below; see :class:`~bild.models.early_exit.shared.LowerScorer`."""

    def follow(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read new tokens and score none."""
        self._extend(tokens, 0)


class CompiledUpper(StatesScorer):
    """The layers above, reading the hidden states of the layers below."""

    def __init__(self, model: CompiledSplitModel, lower: CompiledLower) -> None:
        self._lower = lower
        super().__init__(model, [[]] * len(lower.lengths))

    @property
    def keeper(self) -> CompiledLower:
        """The layers below."""
        return self._lower

    def above(self, lower: CompiledLower) -> None:
        """Read the hidden states of these layers from now on."""
        self._lower = lower

    def _shapes(self, model: CompiledModel) -> Sequence[Shape]:
        # The halves are those of the layers below.
        middle = len(model.storage) // 2
        return [*model.storage[: middle - 1], *model.storage[middle:-1]]

    def _look_up(self, sources: Sequence[Sequence[int]]) -> Sources | PartOfSources | None:
        return self._lower.sources

    def _keep_sources(self, rows: Sequence[int]) -> None:
        """Whoever keeps the layers below keeps them."""

    def _join_sources(self, other: CompiledScorer) -> None:
        """Likewise."""
