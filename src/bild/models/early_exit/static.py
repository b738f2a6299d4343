"""An early exit on static caches, compiled.

The hidden states at the exit are kept as one more layer of the storage below it, half of them as its keys and half
as its values, where the graph of the layers above reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from bild.decoding.scorer import Summary
from bild.models import compiling
from bild.models.early_exit.eager import ExitModel, SplitModel
from bild.models.early_exit.graphs import ReadLower, ReadUpper, Score
from bild.models.early_exit.shared import SplitScorer
from bild.models.early_exit.split import Split, cut
from bild.models.static import EXAMPLE, Graph, StaticModel, StaticScorer, graph_name, halves


class StaticPart(StaticModel):
    """Some layers of a network and its head, compiled.

    Args:
        eager: the same, uncompiled.
        progress: as for :class:`StaticModel`.
    """

    own: slice
    """Which of the decoder layers."""
    score: Graph

    def __init__(self, eager: ExitModel | SplitModel, progress: Callable[[str], None] = compiling.announce) -> None:
        self.parts: Split = eager.parts
        self._eager = eager
        super().__init__(eager.network, progress)

    def read(self, rows: Tensor, last: int, storage: list[Tensor], source: list[Tensor]) -> Sequence[Tensor]:
        """As :meth:`StaticModel.read`; hidden states only where nothing is scored.

        Args:
            last: how many positions to score, 0…T.
            source: of all decoder layers.
        """
        states = super().read(rows, max(last, 1), storage, self._share(source))[:1]
        return self.score(states) if last else states

    def _probe(self) -> None:
        self._batches = self._eager.batches

    def _layers(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        half = (1, self.config.get_text_config(decoder=True).hidden_size // 2)
        return [*super()._layers()[self.own], (half, half)]

    def _share(self, source: list[Tensor]) -> list[Tensor]:
        keys, values = halves(source[:-1])
        return [*keys[self.own], *values[self.own], *source[-1:]]


class StaticExitModel(StaticPart):
    """The first layers of a network, its norm and its head, as the small model."""

    beside = ExitModel.beside

    def __init__(self, eager: ExitModel, progress: Callable[[str], None] = compiling.announce) -> None:
        self.own = slice(0, eager.parts.count)
        super().__init__(eager, progress)

    def start(self, sources: Sequence[Sequence[int]]) -> StaticLower:  # type: ignore[override]
        """Begin a batch of its own; see :meth:`EagerModel.start`."""
        return StaticLower(self, sources)

    def _reader(self, farthest: int | None) -> ReadLower:
        return ReadLower(self.network, farthest)

    def _compile(self, progress: Callable[[str], None]) -> tuple[Graph, Graph]:
        whole = self.parts.network
        name = graph_name(whole)
        encode = self._compile_encode(whole, f"{name}-encode", progress)
        self.score = self._compile_score(f"{name}-score", progress)
        source = self._share(self._example_source(encode))
        return self._compile_read(f"{name}-exit{self.parts.count}-lower", source, progress), encode

    def _compile_score(self, name: str, progress: Callable[[str], None]) -> Graph:
        layers, width = self.parts.total, self.config.get_text_config(decoder=True).hidden_size
        states = self._integers(self._example_rows, EXAMPLE[1] + 1, width).to(self.dtype)
        module = Score(cut(self.parts.network, layers, layers))
        return compiling.compiled(module, (states,), (self._varying({1: "K"}),), name=name, progress=progress)


class StaticSplitModel(StaticPart):
    """A network that reads in two pieces, so that an early exit may share the first."""

    def __init__(
        self, eager: SplitModel, small: StaticExitModel, progress: Callable[[str], None] = compiling.announce
    ) -> None:
        self.own, self.small, self.score = slice(eager.parts.count, None), small, small.score
        super().__init__(eager, progress)

    def start(self, sources: Sequence[Sequence[int]]) -> SplitScorer:  # type: ignore[override]
        """Begin a batch; see :meth:`EagerModel.start`."""
        lower = self.small.start(sources)
        return StaticSplitScorer(lower, StaticUpper(self, lower))

    def _reader(self, farthest: int | None) -> ReadUpper:
        return ReadUpper(self.parts.upper, farthest)

    def _compile(self, progress: Callable[[str], None]) -> tuple[Graph, Graph]:
        encode = self.small._encode
        source = self._share(self._example_source(encode))
        name = f"{graph_name(self.network)}-{last_graph(self.parts.count)}"
        return self._compile_read(name, source, progress), encode


def last_graph(count: int) -> str:
    """The graph that is compiled last."""
    return f"exit{count}-upper"


class StaticSplitScorer(SplitScorer):
    """A :class:`SplitScorer` whose upper layers are compiled."""

    _upper: StaticUpper

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        """As :meth:`StaticScorer.summarize`."""
        self._follow(tokens, last)
        return self._upper.summarize(tokens, last)


class StaticLower(StaticScorer):
    """The layers below; see :class:`~bild.models.early_exit.shared.LowerScorer`."""

    def follow(self, tokens: Sequence[Sequence[int]]) -> None:
        """Read new tokens and score none."""
        self._extend(tokens, last=0)

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Storage of the hidden states' halves, each ``[B, 1, L, D / 2]``."""
        return self._storage[len(self._storage) // 2 - 1], self._storage[-1]


class StaticUpper(StaticScorer):
    """The layers above, reading the hidden states of the layers below."""

    def __init__(self, model: StaticSplitModel, lower: StaticLower) -> None:
        super().__init__(model, lower._sources)
        self._lower = lower

    def _pass(self, tokens: Sequence[Sequence[int]], last: int) -> Sequence[Tensor]:
        lower, needed = self._lower, max(self._lengths) + max(len(row) for row in tokens)
        # The graph reads one storage, so both have its columns.
        if needed > lower._columns:
            lower._grow(needed)
        if lower._columns > self._columns:
            self._grow(lower._columns)
        self._storage[len(self._storage) // 2 - 1], self._storage[-1] = lower.states
        return super()._pass(tokens, last)

    def _encoded(self) -> list[Tensor]:
        return self._lower._encoded()
