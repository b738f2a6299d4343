"""The passes of a network and how they are called: compiled, or on a GPU recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bild.decoding.rows import Halt
from bild.decoding.transfer import to_device
from bild.models.cache import next_power
from bild.models.compiled import runner
from bild.models.compiled.graphs import Read, halves
from bild.models.compiled.recording import Function, Recorded
from bild.models.passes import pad

LONGEST_COMPILED = 64
"""New tokens beyond which a pass is bound by arithmetic and the uncompiled modules do as well."""
LONGEST_PACKED = 1024
"""Likewise where weights are packed in 8 or 4 bits for kernels of our own: uncompiled, prompts of 65, 128, 256 and 800
tokens take 1.6, 1.3, 1.1 and 1.1 times as long (SmolLM2-135M, int8, one thread, VNNI), in bfloat16 as long."""
AT_ONCE = 4
"""Tokens that a GPU writes before it is looked whether the model hands over: those behind the hand-over are lost, but
looking makes it wait for longer than a step of a small model takes."""
RAGGED = 0.8
"""Share of a pass that is not padding, up to which its tokens are read one a row, where rows are named."""
MOST_RAGGED = 64
"""Tokens of a row up to which that is done: queries of one row share what is read of its keys."""
Graph = Callable[[list[Tensor]], list[Tensor]]


@lru_cache(maxsize=LONGEST_PACKED)
def _counting(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)


class Graphs:
    """The passes of a network as its weights were when they were compiled.

    On a GPU they are recorded and replayed (:mod:`bild.models.compiled.recording`), by rows, new tokens and columns in
    powers of two, so that a few recordings serve all; padding costs nothing there.

    Args:
        uncompiled: reads as the first graph does.
        read: arguments and result as those of :class:`~bild.models.compiled.graphs.Read`, in one list.
        encode: likewise of :class:`~bild.models.compiled.graphs.Encode`.
        device: where tokens are put.
        is_recorded: whether passes are recorded, on a GPU.
    """

    def __init__(
        self, uncompiled: Read, read: Graph, encode: Graph, device: torch.device, is_recorded: bool = False
    ) -> None:
        self.uncompiled, self.run_read, self.run_encode, self.device = uncompiled, read, encode, device
        self.has_places = uncompiled.has_places
        """Whether the rows of a pass are named."""
        self.is_recorded = is_recorded
        """Whether passes are recorded, and come in powers of two."""
        self.at_once = AT_ONCE if is_recorded else 1
        """Tokens that are written before anybody looks at them."""
        self._is_packed = any(getattr(each, "is_packed", False) for each in uncompiled.network.modules())
        self._recorded: dict[str, Recorded] = {}

    @property
    def recordings(self) -> dict[str, int]:
        """How many calls of each pass were recorded."""
        return {name: each.recordings for name, each in self._recorded.items()}

    @property
    def longest(self) -> int:
        """New tokens of a compiled pass at most."""
        return LONGEST_PACKED if self._is_packed else LONGEST_COMPILED

    @property
    def one(self) -> Tensor:
        """What asks for the scores of one position."""
        return _counting(1, self.device)

    def rounded(self, count: int) -> int:
        """So many rows or new tokens, or as many as a pass has instead."""
        return next_power(count) if self.is_recorded and count <= self.longest else count

    def is_compiled(self, rows: Tensor) -> bool:
        """Whether a pass over so many numbers a row, as :meth:`read` takes them, is the compiled one."""
        return rows.shape[1] - 2 - self.has_places <= self.longest

    def read(self, rows: Tensor, last: int, storage: list[Tensor], source: list[Tensor]) -> Sequence[Tensor]:
        """One pass of :class:`~bild.models.compiled.graphs.Read`, compiled where that pays.

        Args:
            rows: ``[B, 2 + T]``, as there; on the host.
            last: how many positions to score, 1…T.
            storage: keys, then values, of every decoder layer.
            source: keys, then values, of the source in every decoder layer, then its mask; or nothing.
        """
        if self.is_compiled(rows):
            inputs = [rows, _counting(last, self.device), *storage, *source]
            if self.is_recorded:
                return self._as_recorded("read", self.run_read, inputs, bool(source))
            return self.run_read(inputs)
        scores: Sequence[Tensor] = self.uncompiled(*arguments(to_device(rows, self.device), last, storage, source))
        return scores

    def roll(
        self, rows: Tensor, steps: int, storage: list[Tensor], source: list[Tensor]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Read, then go on with the likeliest token, over and over, without returning to the host in between.

        Args:
            rows: as for :meth:`read`; a row without new tokens stays as it is.
            steps: tokens to write, 1…; 1 where passes are not recorded.
            storage: as for :meth:`read`, with room for the new tokens and all that are written but the last.
            source: as for :meth:`read`.

        Returns:
            The tokens each row has written, and their probabilities.
        """
        if not self.is_recorded:
            _, likeliest, probability, *_ = self.read(rows, 1, storage, source)
            return likeliest.tolist(), probability.tolist()
        inputs = [rows, self.one, *storage, *source]
        (written,) = self._as_recorded(f"roll {steps}", partial(self._rolling, steps), inputs, bool(source))
        tokens, probabilities = written.tolist()
        return [[int(token) for token in row] for row in tokens], probabilities

    @property
    def rolls(self) -> bool:
        """Whether :meth:`roll_to` can be called: the graph is run by our own hand, and tells the next token."""
        return self.has_places and isinstance(self.run_read, runner.Graph)

    @property
    def encodes_aside(self) -> bool:
        """Whether sources can be encoded while another thread does something else."""
        return isinstance(self.run_encode, runner.Graph)

    def roll_to(self, inputs: list[Tensor], halts: Sequence[Halt]) -> tuple[list[list[int]], list[list[float]]]:
        """Rows that are named write token after token, in one call, until each has come to its halt.

        Args:
            inputs: of one new token a row.
            halts: of each row; all end with the same tokens.

        Returns:
            The tokens each row has written, and their probabilities.
        """
        assert isinstance(self.run_read, runner.Graph)
        return self.run_read.roll(inputs, halts)

    def _rolling(self, steps: int, inputs: list[Tensor]) -> list[Tensor]:
        rows, *rest = inputs
        written = []
        for step in range(steps):
            _, likeliest, probability, *_ = self.run_read([rows, *rest])
            written.append(torch.stack([likeliest[:, -1].float(), probability[:, -1].float()]))
            if step + 1 < steps:
                lengths, counts = rows[:, :1], rows[:, 1:2]
                rows = torch.cat([lengths + counts, counts.clamp(max=1), likeliest[:, -1:]], 1)
        return [torch.stack(written, -1)]

    def _as_recorded(self, name: str, function: Function, inputs: list[Tensor], has_source: bool) -> Sequence[Tensor]:
        """The function's results; the rows, and the mask of the sources behind all else, are copied."""
        if name not in self._recorded:
            self._recorded[name] = Recorded(function)
        return self._recorded[name](inputs, (0, len(inputs) - 1) if has_source else (0,))

    def encode_sources(self, sources: Sequence[Sequence[int]]) -> list[Tensor]:
        """Keys, then values, of the sources in every decoder layer, each ``[N, H, S, D]``."""
        counts = [len(source) for source in sources]
        width = max(counts)
        # By way of numpy in half the time.
        ids = torch.from_numpy(np.array([pad(source, width) for source in sources], dtype=np.int64))
        return self.run_encode([to_device(ids, self.device), mask_of(counts, width, self.device)])


def mask_of(counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    """Which of ``width`` columns are seen, ``[N, 1, 1, width]``: so many of each row, from the first on."""
    seen = np.arange(width) < np.array(counts)[:, None]
    return to_device(torch.from_numpy(seen.reshape(-1, 1, 1, width)), device)


def arguments(rows: Tensor, last: int, storage: list[Tensor], source: list[Tensor]) -> Any:
    """As :class:`~bild.models.compiled.graphs.Read` takes them."""
    return nested(rows, _counting(last, rows.device), storage, source)


def nested(rows: Tensor, last: Tensor, storage: list[Tensor], source: list[Tensor]) -> Any:
    """Flat arguments as :class:`~bild.models.compiled.graphs.Read` takes them."""
    mask = source[-1] if source else None
    return (rows, last, *halves(storage), *halves(source[:-1]), mask)
