"""The passes of both sides of a pair whose small model reads states: what is compiled of it, and nothing else, because
this file names the graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bild.models import joined, parallel
from bild.models.compiled.cache import RowLayer
from bild.models.compiled.graphs import Read, Source, summary
from bild.models.joined import join_states
from bild.models.parallel import ahead_of
from bild.models.parts import final_norm
from bild.models.passes import Placed
from bild.models.seams import Pass, choose
from bild.models.short_list import short_list_of

_SOURCES = (Path(__file__), Path(joined.__file__), Path(parallel.__file__))
_DIGEST = hashlib.sha256(b"".join(file.read_bytes() for file in _SOURCES)).hexdigest()[:8]
KEEPING, READING = f"keeping-{_DIGEST}", f"reading-{_DIGEST}"
"""What the graphs are called, by what is compiled."""


class ReadKeeping(Read):
    """As :class:`Read`; the last of ``keys`` and ``values`` keep what the head reads, half of it in either."""

    def read(self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source) -> tuple[Tensor, ...]:
        now = Pass(new.positions, new.ends, new.wanted, takes_states=True)
        logits = self.run(now, new.tokens, new.positions, keys[:-1], values[:-1], source)
        assert now.states is not None
        states = final_norm(self.network)(now.states)
        RowLayer(keys[-1], values[-1], new.positions).update(*states[:, None].chunk(2, dim=-1))
        return summary(logits, short_list_of(self.network))


class ReadStates(Read):
    """As :class:`Read`, on the states in the last of ``keys`` and ``values``, and the states ``[B, K, D]`` it makes.

    Where it drafts m tokens at once, m − 1 columns follow: of the places behind the last one."""

    def read(self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source) -> tuple[Tensor, ...]:
        before = (new.positions - 1).clamp(min=0)
        states = torch.cat([choose(half[:, 0], before) for half in (keys[-1], values[-1])], -1)
        read = join_states(self.network, new.tokens, states * (new.positions > 0)[..., None])
        now = Pass(new.positions, new.ends, new.wanted, ahead=ahead_of(self.network))
        logits = self.run(now, read, new.positions, keys[:-1], values[:-1], source)
        assert now.shown is not None
        return (*summary(logits, short_list_of(self.network)), now.shown)
