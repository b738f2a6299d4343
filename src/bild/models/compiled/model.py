"""Any checkpoint behind the Scorer contract, on static caches, compiled.

One graph reads new tokens and one encodes a source; batch, new tokens, columns and source length are
dynamic in both, so a model is compiled once in its life and holds one packed copy of its weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from transformers import PreTrainedModel

from bild.decoding import Scorer
from bild.errors import one_line
from bild.models import kernels
from bild.models.cache import COLUMNS, RowCache, Shape
from bild.models.compiled import compiling, processes, runner
from bild.models.compiled.calling import Graph, Graphs, arguments, nested
from bild.models.compiled.graph_files import file_of
from bild.models.compiled.graphs import Encode, EncodeForBoth, Read
from bild.models.compiled.scorer import CompiledScorer
from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import EagerScorer
from bild.models.probing import difference, nudged, tolerance
from bild.models.seams import plainly

logger = logging.getLogger("bild")

EXAMPLE = (2, 3, COLUMNS, 16)
"""Rows, new tokens, columns and source tokens that the compiler tunes for; all vary when it runs. They are distinct,
so that torch.export does not take two dimensions for one."""
PLACES = 7
"""Likewise, places of the storage where the rows of a pass are named."""
MANY = 1 << 20
"""More rows, tokens or columns than anybody will ask for."""


def graph_name(network: PreTrainedModel) -> str:
    """What the compiled graphs of these weights are called on this machine, before ``-encode`` and ``-read``."""
    if is_recorded(network.device):
        return type(network).__name__
    return f"{type(network).__name__}-{compiling.fingerprint(network)}"


def is_prepared(network: PreTrainedModel, graph: str = "read") -> bool:
    """Whether running this network compiled would compile nothing: whether its last graph is there."""
    # To name the graphs of billions of weights takes seconds, so first whether there are any of the kind.
    if not any(file_of("").parent.glob(f"{type(network).__name__}-*")):
        return False
    return file_of(f"{graph_name(network)}-{graph}").exists()


def compiling_aside(network: PreTrainedModel, beside: PreTrainedModel) -> AbstractContextManager[None]:
    """Within, another process compiles a network while this one compiles another; nothing where one of them is there
    already, or that cannot be done.

    Args:
        network: whose graphs are on disk afterwards, if nothing went wrong.
        beside: the other one.
    """
    can = network.device.type == "cpu" and runner.is_loaded() and processes.can_fork()
    if not can or is_prepared(network) or is_prepared(beside):
        return nullcontext()

    def compile_it() -> int:
        before = compiling.compilations
        if not CompiledModel(network).is_compiled:
            raise RuntimeError("it cannot be compiled there")
        return compiling.compilations - before

    return processes.aside(compile_it, compiling.count)


def is_recorded(device: torch.device) -> bool:
    """Whether passes there are recorded rather than compiled: launching is what takes the time of a step on a GPU."""
    return device.type == "cuda"


class CompiledModel(EagerModel):
    """A compiled network that can start reading new texts; see :class:`~bild.models.protocol.Model`.

    When the network's weights have changed it is compiled anew before the next text starts; texts that have begun go
    on with the weights they began with.

    Args:
        network: encoder-decoder or decoder-only model with a language-model head; it is left as it is.
        progress: told what is being compiled before it starts, a log line by default; silent where all is on disk.

    Raises:
        LoadError: as :class:`EagerModel`. What cannot be compiled runs uncompiled, after one warning.
    """

    def __init__(self, network: PreTrainedModel, progress: Callable[[str], None] = compiling.announce) -> None:
        self._progress, self._changing = progress, Lock()
        self.graphs: Graphs
        self._compiled = False
        super().__init__(network)
        self._prepare()

    @property
    def _made_of(self) -> tuple[Any, ...]:
        return (self.origin, self._progress)

    @property
    def is_compiled(self) -> bool:
        """Whether passes run compiled."""
        return self._compiled

    @property
    def writes_alone(self) -> bool:
        """Whether one of its graphs tells the next token, and only tokens of the shared vocabulary."""
        return self.scores_all

    @property
    def storage(self) -> list[Shape]:
        """Of what is stored of each token: keys, then values, of every layer."""
        return self.shapes

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Begin a batch; see :meth:`~bild.models.protocol.Model.start`."""
        self.refresh()
        return self._switching(self.scorer(sources) if self.is_compiled else EagerScorer(self, sources, encoded))

    def scorer(self, sources: Sequence[Sequence[int]]) -> CompiledScorer:
        """A scorer that runs compiled."""
        return CompiledScorer(self, sources)

    def refresh(self) -> None:
        """Compile anew if the network's weights or modules have changed."""
        if not self._sees_change():
            return
        with self._changing:
            if self._sees_change():
                super().refresh()
                self._copy()
                self._prepare()

    def _sees_change(self) -> bool:
        """Whether what was compiled is no longer what is there."""
        return self._watch.sees_change()

    def _prepare(self) -> None:
        """Make the graphs of the weights as they are now."""
        try:
            with plainly(self.device):
                self.graphs = self._compile(self._progress)
                self._compiled = True
                self._compare()
            if runner.RUNNER.is_registered:
                self._watch.tell_by(runner.Fingerprint)
        except Exception as error:  # torch raises whatever it likes; the request must not be lost
            self._compiled = False
            name = type(self.network).__name__
            logger.warning("%s cannot be compiled and runs uncompiled (%s)", name, one_line(error))

    def _compile(self, progress: Callable[[str], None]) -> Graphs:
        """Both graphs, from disk where they are there; a decoder-only model has nothing to encode."""
        name = graph_name(self.network)
        encode = self._compile_encode(Encode(self.modules), f"{name}-encode", progress)
        return self._compile_read(f"{name}-read", self._example_source(encode), encode, progress)

    def _reader(self) -> Read:
        return Read(self.modules, self.farthest, self._has_places)

    @property
    def _has_places(self) -> bool:
        """Whether the rows of a pass are named: where our attention reads them in their places."""
        if is_recorded(self.device) or not self.batches or self.switches:
            return False
        return kernels.are_supported(self.network, self.shapes)

    @torch.no_grad()
    def _compile_encode(self, module: Encode | EncodeForBoth, name: str, progress: Callable[[str], None]) -> Graph:
        if not self.is_encoder_decoder:
            return _nothing
        if is_recorded(self.device):
            # Once a text; some encoders make the host wait, which cannot be recorded.
            return torch.no_grad()(lambda inputs: module(*inputs))
        varying = (self._varying({1: "S"}), self._varying({3: "S"}))
        ids = self._example_ids()
        return compiling.compiled(module, ids, varying, name=name, progress=progress, many_rows=True)

    @torch.no_grad()
    def _compile_read(self, name: str, source: list[Tensor], encode: Graph, progress: Callable[[str], None]) -> Graphs:
        tokens, columns = EXAMPLE[1:3]
        reader = self._reader()
        stored = "P" if reader.has_places else "B"
        varying: tuple[Any, ...] = (self._varying({1: "T"}), {0: self._dims["K"]})
        varying += tuple([self._varying({2: "L"}, stored)] * (len(self.storage) // 2) for _ in range(2))
        varying += tuple([self._varying({2: "S"}, stored)] * (len(source) // 2) for _ in range(2))
        varying += (self._varying({3: "S"}, stored) if source else None,)
        if is_recorded(self.device):
            return Graphs(reader, self._uncompiled_read(reader), encode, self.device, is_recorded=True)
        storage = RowCache(self.storage, self._example_places, columns).tensors
        width = 2 + tokens + reader.has_places
        example = arguments(self._integers(self._example_rows, width), tokens + 1, storage, source)
        read = compiling.compiled(reader, example, varying, name=name, progress=progress)
        return Graphs(reader, read, encode, self.device)

    def _uncompiled_read(self, reader: Read) -> Graph:
        stored = len(self.storage)

        def read(inputs: list[Tensor]) -> list[Tensor]:
            rows, last, *rest = inputs
            return list(reader(*nested(rows, last, rest[:stored], rest[stored:])))

        return read

    @property
    def _example_rows(self) -> int:
        return EXAMPLE[0] if self.batches else 1

    @property
    def _example_places(self) -> int:
        return PLACES if self._has_places else self._example_rows

    def _example_ids(self, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Sources and their mask."""
        rows, width = self._example_rows if rows is None else rows, EXAMPLE[3]
        return self._integers(rows, width), self._integers(rows, 1, 1, width) == 0

    def _example_source(self, encode: Graph) -> list[Tensor]:
        if not self.is_encoder_decoder:
            return []
        ids, mask = self._example_ids(self._example_places)
        # By the graph itself: a graph reads its inputs by the strides of its example.
        return [*encode([ids, mask]), mask]

    def _varying(self, dims: dict[int, str], rows: str = "B") -> dict[int, Any]:
        """The dimensions of a tensor that vary, the first being the rows where the model takes several."""
        names = {0: rows, **dims} if self.batches else dims
        return {dim: self._dims[name] for dim, name in names.items()}

    @cached_property
    def _dims(self) -> dict[str, Any]:
        """Rows, new tokens (and two columns beside them), scored positions, columns, source tokens.

        The compiler must be told at least two of each; nothing in what it makes depends on that, and ones are
        tested. The encoder of M2M-100 asks whether its table of positions is long enough.
        """
        longest_source = MANY if self.max_source_positions is None else self.max_source_positions
        bounds = {
            "B": (2, MANY),
            "P": (2, MANY),
            "T": (4 + self._has_places, MANY),
            "K": (2, MANY),
            "L": (2, MANY),
            "S": (2, longest_source),
        }
        return {name: Dim(name, min=least, max=most) for name, (least, most) in bounds.items()}

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long, device=self.device)

    def _compare(self) -> None:
        """The compiled network must say what the uncompiled one says, or rounding apart from it.

        How much rounding makes at this depth, width and dtype is what uncompiled computations differ by: in one piece
        and in two, and one rounding apart (in 8 bits pieces may make no difference at all).
        """
        source, tokens = self.probe_tokens()
        scored = len(tokens) - 2
        expected = self._uncompiled([source]).extend([tokens], scored)
        pieces = self._uncompiled([source])
        pieces.extend([tokens[:2]])
        noise = difference(expected, pieces.extend([tokens[2:]], scored))
        with nudged(self.modules):
            noise = max(noise, difference(expected, self._uncompiled([source]).extend([tokens], scored)))
        scorer = self.scorer([source])
        scorer.extend([tokens[:2] + tokens[:1]])
        scorer.truncate([2])
        if not difference(expected, scorer.extend([tokens[2:]], scored)) <= tolerance(noise):
            raise RuntimeError("its compiled graph scores tokens differently")

    def _uncompiled(self, sources: Sequence[Sequence[int]]) -> Any:
        return EagerScorer(self, sources)


def _nothing(_: list[Tensor]) -> list[Tensor]:
    return []
