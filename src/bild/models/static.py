"""Any checkpoint behind the Scorer contract, on static caches, compiled.

One graph reads new tokens and one encodes a source; batch, new tokens, columns and source length are
dynamic in both, so a model is compiled once in its life and holds one packed copy of its weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim
from transformers import PreTrainedModel

from bild.decoding.scorer import Summary
from bild.errors import one_line
from bild.models import compiling
from bild.models.eager import EagerModel, disagree
from bild.models.eager_scorer import EagerScorer, check_last, pad
from bild.models.graphs import Encode, Read, summary

logger = logging.getLogger("bild")

COLUMNS = 32
"""Columns of the first storage; it doubles whenever a text outgrows it."""
LONGEST_COMPILED = 64
"""New tokens beyond which a pass is bound by arithmetic and the uncompiled modules do as well."""
EXAMPLE = (2, 3, COLUMNS, 16)
"""Rows, new tokens, columns and source tokens that the compiler tunes for; all vary when it runs, and none
are equal, lest it take two for one."""
MANY = 1 << 20
"""More rows, tokens or columns than anybody will ask for."""

Graph = Callable[[list[Tensor]], list[Tensor]]


def graph_name(network: PreTrainedModel) -> str:
    """What the compiled graphs of these weights are called on this machine, before ``-encode`` and ``-read``."""
    return f"{type(network).__name__}-{compiling.fingerprint(network)}"


def is_prepared(network: PreTrainedModel, graph: str = "read") -> bool:
    """Whether running this network compiled would compile nothing: whether its last graph is there."""
    # To name the graphs of billions of weights takes seconds, so first whether there are any of the kind.
    if not any(compiling.file_of("").parent.glob(f"{type(network).__name__}-*")):
        return False
    return compiling.file_of(f"{graph_name(network)}-{graph}").exists()


@lru_cache(maxsize=LONGEST_COMPILED)
def _counting(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


class StaticModel(EagerModel):
    """A compiled network that can start reading new texts.

    Args:
        network: encoder-decoder or decoder-only model with a language-model head, in eval mode.
        progress: told what is being compiled before it starts, a log line by default; silent where all is on disk.

    Raises:
        LoadError: as :class:`EagerModel`. What cannot be compiled runs uncompiled, after one warning.
    """

    def __init__(self, network: PreTrainedModel, progress: Callable[[str], None] = compiling.announce) -> None:
        self.is_compiled = False
        super().__init__(network)
        self.layers = self._layers()
        self.uncompiled = self._reader(None if self.max_positions is None else self.max_positions - 1)
        try:
            self._read, self._encode = self._compile(progress)
            self.is_compiled = True
            self._compare()
        except Exception as error:  # torch raises whatever it likes; the request must not be lost
            self.is_compiled = False
            logger.warning("%s cannot be compiled and runs uncompiled (%s)", type(network).__name__, one_line(error))

    def start(self, sources: Sequence[Sequence[int]]) -> EagerScorer | StaticScorer:  # type: ignore[override]
        """Begin a batch; see :meth:`EagerModel.start`."""
        return StaticScorer(self, sources) if self.is_compiled else super().start(sources)

    def read(self, rows: Tensor, last: int, storage: list[Tensor], source: list[Tensor]) -> Sequence[Tensor]:
        """One pass of :class:`~bild.models.graphs.Read`, compiled where that pays.

        Args:
            rows: ``[B, 2 + T]``, as there.
            last: how many positions to score, 1…T.
            storage: keys, then values, of every decoder layer.
            source: keys, then values, of the source in every decoder layer, then its mask; or nothing.
        """
        if rows.shape[1] - 2 <= LONGEST_COMPILED:
            return self._read([rows, _counting(last, self.device), *storage, *source])
        return self.uncompiled(*self._arguments(rows, last, storage, source))

    def encode_source(self, sources: Sequence[Sequence[int]]) -> list[Tensor]:
        """Keys, then values, of the sources in every decoder layer, then their mask ``[B, 1, 1, S]``."""
        width = max(len(source) for source in sources)
        ids = torch.tensor([pad(source, width) for source in sources], device=self.device)
        lengths = torch.tensor([len(source) for source in sources], device=self.device)
        mask = (torch.arange(width, device=self.device) < lengths[:, None])[:, None, None]
        return [*self._encode([ids, mask]), mask]

    def storage(self, rows: int, columns: int) -> list[Tensor]:
        """Room for this many tokens a row; zeros, because a masked NaN is still a NaN."""
        # Tensors of one shape in one piece: a small model's text costs little more than so many allocations.
        shapes = [layer[part] for part in (0, 1) for layer in self.layers]
        pieces = {
            (heads, size): iter(
                torch.zeros(
                    shapes.count((heads, size)), rows, heads, columns, size, dtype=self.dtype, device=self.device
                ).unbind()
            )
            for heads, size in set(shapes)
        }
        return [next(pieces[shape]) for shape in shapes]

    def _reader(self, farthest: int | None) -> Read:
        return Read(self.network, farthest)

    def _layers(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Heads and width of the keys and of the values of every decoder layer."""
        scorer = super().start([[self.vocab_size // 2] if self.is_encoder_decoder else []])
        scorer.extend([[self.vocab_size // 2]])
        shapes = [(layer.keys.shape, layer.values.shape) for layer in scorer._cache.layers]
        return [((keys[1], keys[3]), (values[1], values[3])) for keys, values in shapes]

    def _compile(self, progress: Callable[[str], None]) -> tuple[Graph, Graph]:
        """Both graphs, from disk where they are there; a decoder-only model has nothing to encode."""
        name = graph_name(self.network)
        encode = self._compile_encode(self.network, f"{name}-encode", progress)
        return self._compile_read(f"{name}-read", self._example_source(encode), progress), encode

    @torch.no_grad()
    def _compile_encode(self, network: PreTrainedModel, name: str, progress: Callable[[str], None]) -> Graph:
        if not self.is_encoder_decoder:
            return _nothing
        varying = (self._varying({1: "S"}), self._varying({3: "S"}))
        return compiling.compiled(Encode(network), self._example_ids(), varying, name=name, progress=progress)

    @torch.no_grad()
    def _compile_read(self, name: str, source: list[Tensor], progress: Callable[[str], None]) -> Graph:
        tokens, columns = EXAMPLE[1:3]
        varying = (self._varying({1: "T"}), {0: self._dims["K"]})
        varying += tuple([self._varying({2: "L"})] * len(self.layers) for _ in range(2))
        varying += tuple([self._varying({2: "S"})] * (len(source) // 2) for _ in range(2))
        varying += (self._varying({3: "S"}) if source else None,)
        storage = self.storage(self._example_rows, columns)
        arguments = self._arguments(self._integers(self._example_rows, 2 + tokens), tokens + 1, storage, source)
        return compiling.compiled(self.uncompiled, arguments, varying, name=name, progress=progress)

    @property
    def _example_rows(self) -> int:
        return EXAMPLE[0] if self.batches else 1

    def _example_ids(self) -> tuple[Tensor, Tensor]:
        """A source and its mask."""
        rows, width = self._example_rows, EXAMPLE[3]
        return self._integers(rows, width), self._integers(rows, 1, 1, width) == 0

    def _example_source(self, encode: Graph) -> list[Tensor]:
        if not self.is_encoder_decoder:
            return []
        ids, mask = self._example_ids()
        # By the graph itself: a graph reads its inputs by the strides of its example.
        return [*encode([ids, mask]), mask]

    def _varying(self, dims: dict[int, str]) -> dict[int, Any]:
        """The dimensions of a tensor that vary, the first being the rows where the model takes several."""
        names = {0: "B", **dims} if self.batches else dims
        return {dim: self._dims[name] for dim, name in names.items()}

    @cached_property
    def _dims(self) -> dict[str, Any]:
        """Rows, new tokens (and two columns beside them), scored positions, columns, source tokens.

        The compiler must be told at least two of each; nothing in what it makes depends on that, and ones are
        tested. The encoder of M2M-100 asks whether its table of positions is long enough.
        """
        longest_source = MANY if self.max_source_positions is None else self.max_source_positions
        bounds = {"B": (2, MANY), "T": (4, MANY), "K": (2, MANY), "L": (2, MANY), "S": (2, longest_source)}
        return {name: Dim(name, min=least, max=most) for name, (least, most) in bounds.items()}

    def _integers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.long, device=self.device)

    def _arguments(self, rows: Tensor, last: int, storage: list[Tensor], source: list[Tensor]) -> Any:
        """As :class:`~bild.models.graphs.Read` takes them."""
        return (
            rows,
            _counting(last, self.device),
            *halves(storage),
            *halves(source[:-1]),
            source[-1] if source else None,
        )

    def _compare(self) -> None:
        """The compiled network must say what the uncompiled one says, or rounding apart from it."""
        source, tokens = self._probe_tokens()
        expected = super().start([source]).extend([tokens], last=5)
        scorer = self.start([source])
        scorer.extend([tokens[:2] + tokens[:1]])
        scorer.truncate([2])
        found = scorer.extend([tokens[2:]], last=3)
        if disagree(expected[0, 2:], found[0]):
            raise RuntimeError("its compiled graph scores tokens differently")


class StaticScorer:
    """One batch being read by a :class:`StaticModel`; see :class:`bild.decoding.Scorer`."""

    def __init__(self, model: StaticModel, sources: Sequence[Sequence[int]]) -> None:
        self.model = model
        self._sources = list(sources)
        self._source: list[Tensor] | None = None if model.is_encoder_decoder else []
        self._lengths = [0] * len(sources)
        self._columns = COLUMNS
        self._storage = model.storage(len(sources), COLUMNS)

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        check_last(tokens, last)
        return self._extend(tokens, last)[0]

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        """As :meth:`extend`, and the summary of the logits."""
        check_last(tokens, last)
        scores = self._extend(tokens, last)
        # Where ids beyond the shared vocabulary were cut off, so was the summary they took part in.
        logits, *of_logits = scores if len(scores) > 1 else summary(scores[0])
        return logits, Summary(*of_logits)

    def _extend(self, tokens: Sequence[Sequence[int]], last: int) -> Sequence[Tensor]:
        # Entering the mode costs as much as a small layer, so not twice.
        if torch.is_inference_mode_enabled():
            return self._pass(tokens, last)
        with torch.inference_mode():
            return self._pass(tokens, last)

    def _pass(self, tokens: Sequence[Sequence[int]], last: int) -> Sequence[Tensor]:
        model, lengths = self.model, self._lengths
        counts = [len(row) for row in tokens]
        width = max(counts)
        if max(lengths) + width > self._columns:
            self._grow(max(lengths) + width)
        rows = [[*numbers, *pad(row, width)] for *numbers, row in zip(lengths, counts, tokens, strict=True)]
        # By way of numpy in half the time.
        new = torch.from_numpy(np.array(rows, dtype=np.int64)).to(model.device)
        scores = model.read(new, last, self._storage, self._encoded())
        self._lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
        if not last or scores[0].shape[-1] == model.vocab_size:
            return scores
        return (scores[0][..., : model.vocab_size],)

    def _encoded(self) -> list[Tensor]:
        """Keys and values of the sources, computed when they are first asked for."""
        if self._source is None:
            # Only now: a text the small model ends unread never costs the large model's encoder.
            self._source = self.model.encode_source(self._sources)
        return self._source

    def truncate(self, lengths: Sequence[int]) -> None:
        self._lengths = [min(own, length) for own, length in zip(self._lengths, lengths, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self.model.device)
        self._sources = [self._sources[b] for b in rows]
        self._lengths = [self._lengths[b] for b in rows]
        self._storage = [tensor[index] for tensor in self._storage]
        if self._source:
            self._source = [tensor[index] for tensor in self._source]

    def _grow(self, needed: int) -> None:
        """Make room: the next power of two, so that a long text is moved a few times only."""
        self._columns = 1 << (needed - 1).bit_length()
        larger = self.model.storage(len(self._lengths), self._columns)
        for old, new in zip(self._storage, larger, strict=True):
            new[:, :, : old.shape[2]] = old
        self._storage = larger


def halves(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of as many layers."""
    middle = len(tensors) // 2
    return tensors[:middle], tensors[middle:]


def _nothing(_: list[Tensor]) -> list[Tensor]:
    return []
