"""Two models with one encoder, compiled: one graph encodes a source and makes the keys and values of both decoders.

Those of the large model's layers stand before those of the small one's, and each side looks up its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedModel

from bild.decoding import Scorer
from bild.models.compiled import compiling
from bild.models.compiled.calling import Graph, Graphs
from bild.models.compiled.graph_files import file_of
from bild.models.compiled.graphs import EncodeForBoth
from bild.models.compiled.model import CompiledModel, graph_name, is_prepared, is_recorded
from bild.models.compiled.scorer import CompiledScorer
from bild.models.compiled.sources import PartOfSources, Sources, part_of
from bild.models.one_encoder.comparing import have_one_encoder
from bild.models.seams import own_modules
from bild.models.watch import Watch


class CompiledSide(CompiledModel):
    """One of two models whose sources are encoded together."""

    lender: CompiledLender
    """The large one of them."""

    @property
    def own(self) -> slice:
        """Which of the layers whose keys and values are made are its own."""
        raise NotImplementedError

    def scorer(self, sources: Sequence[Sequence[int]]) -> CompiledScorer:
        """A scorer that runs compiled."""
        graphs = self.lender.graphs
        looked_up = Sources(sources, graphs.encode_sources, self.device, graphs.is_recorded, self.graphs.has_places)
        return CompiledScorer(self, sources, PartOfSources(looked_up, self.own))

    def _compile_own(self, encode: Graph, progress: Callable[[str], None]) -> Graphs:
        source = part_of(self._example_source(encode), self.own)
        return self._compile_read(f"{graph_name(self.network)}-read", source, encode, progress)


class CompiledLender(CompiledSide):
    """The large model, whose encoder serves both; see :class:`CompiledModel`.

    Args:
        network: its own.
        borrower: the network of the small model.
        progress: as for :class:`CompiledModel`.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        borrower: PreTrainedModel,
        progress: Callable[[str], None] = compiling.announce,
    ) -> None:
        self.borrower, self.lender = borrower, self
        super().__init__(network, progress)

    @property
    def own(self) -> slice:
        """The first ones."""
        return slice(0, len(self.shapes) // 2)

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.origin, self.borrower, self._progress

    def _copy(self) -> None:
        super()._copy()
        self._beside = Watch(self.borrower)

    def _sees_change(self) -> bool:
        return super()._sees_change() or self._beside.sees_change()

    def _compile(self, progress: Callable[[str], None]) -> Graphs:
        # Asked each time: whoever changes one of the networks may have parted what was one encoder.
        is_one = have_one_encoder(self.network, self.borrower)
        both = EncodeForBoth(self.modules, own_modules(self.borrower), is_one)
        encode = self._compile_encode(both, joint_name(self.network, self.borrower), progress)
        return self._compile_own(encode, progress)


class CompiledBorrower(CompiledSide):
    """The small model, which looks up what the large model's encoder has made of a source; see :class:`CompiledModel`.

    Args:
        network: its own.
        lender: the large model.
        progress: as for :class:`CompiledModel`.
    """

    def __init__(
        self, network: PreTrainedModel, lender: CompiledLender, progress: Callable[[str], None] = compiling.announce
    ) -> None:
        self.lender = lender
        super().__init__(network, progress)

    @property
    def own(self) -> slice:
        """Those behind the large model's."""
        return slice(self.lender.own.stop, None)

    @property
    def is_compiled(self) -> bool:
        """Whether passes run compiled: where both models' do."""
        return super().is_compiled and self.lender.is_compiled

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """The small side of the batch that the large model has begun."""
        if not isinstance(large, CompiledScorer) or not isinstance(large.sources, PartOfSources):
            return self.start(sources)
        # The large model has looked at both networks when it began.
        super().refresh()
        return CompiledScorer(self, sources, large.sources.of_another(self.own))

    def refresh(self) -> None:
        """Compile anew if the weights or modules of one of the networks have changed."""
        self.lender.refresh()
        super().refresh()

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return self.origin, self.lender, self._progress

    def _compile(self, progress: Callable[[str], None]) -> Graphs:
        return self._compile_own(self.lender.graphs.run_encode, progress)


def joint_name(large: PreTrainedModel, small: PreTrainedModel) -> str:
    """What the graph is called that encodes for both."""
    name = graph_name(large)
    return name if is_recorded(large.device) else f"{name}-{compiling.fingerprint(small)}-encode"


def is_pair_prepared(large: PreTrainedModel, small: PreTrainedModel) -> bool:
    """Whether running these two compiled would compile nothing."""
    both = is_prepared(large) and is_prepared(small)
    return both and file_of(joint_name(large, small)).exists()
