"""The sources of a batch on the uncompiled runtime: encoded once, and not before a pass needs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from bild.models.cache import RowCache, Shape
from bild.models.eager.cache import cache_over
from bild.models.parts import encoder_of, states_in
from bild.models.passes import Source, run
from bild.models.seams import Pass
from bild.models.sources import distinct_of


class Encoded:
    """What the encoder makes of each row's source.

    Args:
        network: the modules to read with.
        tokens: encoder input ids of each row.
        states: what the encoder has made of each row ``[S, D]``, where that is known.
        kind: what the encoder returns its states in.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokens: Sequence[Sequence[int]],
        states: Sequence[Tensor] | None = None,
        kind: type[ModelOutput] = BaseModelOutput,
    ) -> None:
        self.network, self.tokens, self.kind = network, list(tokens), kind
        self.states: list[Tensor | None] = [None] * len(self.tokens) if states is None else list(states)

    def of(self, rows: Sequence[int]) -> list[Tensor]:
        """Of some rows, each ``[S, D]``; those that have not been encoded are, in one pass."""
        missing = [b for b in rows if self.states[b] is None]
        if missing:
            # One that is there several times, for several texts, is encoded once.
            distinct, numbers = distinct_of([self.tokens[b] for b in missing])
            ids, mask = padded(distinct, self.network.device)
            states = encoder_of(self.network)(input_ids=ids, attention_mask=mask)[0]
            for b, number in zip(missing, numbers, strict=True):
                self.states[b] = states[number, : len(self.tokens[b])]
        return [states for b in rows if (states := self.states[b]) is not None]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows."""
        self.tokens = [self.tokens[b] for b in rows]
        self.states = [self.states[b] for b in rows]

    def join(self, other: Encoded) -> None:
        """Go on with another's rows behind these."""
        self.tokens += other.tokens
        self.states += other.states


class Sources:
    """What each row's decoder looks up, padded on the right to the longest.

    Args:
        network: the modules to read with.
        encoded: of the rows.
        hidden: width of the hidden states that these modules read in place of tokens; None: they read tokens.
        borrowed: whether somebody else keeps and joins ``encoded``.
    """

    def __init__(
        self, network: PreTrainedModel, encoded: Encoded, hidden: int | None = None, borrowed: bool = False
    ) -> None:
        self.network, self.encoded, self._hidden, self._borrowed = network, encoded, hidden, borrowed
        self.tokens = list(encoded.tokens)
        # Whether a row's keys and values of the source are in the cache.
        self._crossed = [False] * len(self.tokens)
        self._cache: RowCache | None = None
        self._ready: tuple[Cache, Source] | None = None

    def past(self, own: Cache, needed: Sequence[int], row: int | None = None) -> tuple[EncoderDecoderCache, Source]:
        """The cache and the source of a pass.

        Args:
            own: keys and values of the decoder's own tokens.
            needed: rows that read something; only theirs are encoded.
            row: the only row of the pass; None: all.
        """
        missing = [b for b in needed if not self._crossed[b]]
        if len(missing) == len(self.tokens) and row is None:
            return EncoderDecoderCache(own, DynamicCache()), self._source(slice(None))
        if missing:
            self._cross(missing)
        if row is not None:
            rows = slice(row, row + 1)
            return EncoderDecoderCache(own, self._crossing(rows)), self._source(rows)
        if self._ready is None:
            self._ready = self._crossing(slice(None)), self._source(slice(None))
        cross, source = self._ready
        return EncoderDecoderCache(own, cross), source

    def adopt(self, past: EncoderDecoderCache) -> None:
        """Keep the keys and values of the sources that the first pass of all rows has computed."""
        if not any(self._crossed):
            self._cache = RowCache.holding(states_in(past.cross_attention_cache))
            self._crossed = [True] * len(self.tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """As :meth:`RowCache.keep`."""
        if not self._borrowed:
            self.encoded.keep(rows)
        self.tokens = [self.tokens[b] for b in rows]
        self._crossed = [self._crossed[b] for b in rows]
        self._ready = None
        if self._cache is not None:
            self._cache.keep(rows, self._read, max(self._lengths))

    def join(self, other: Sources) -> None:
        """As :meth:`RowCache.join`."""
        if not self._borrowed:
            self.encoded.join(other.encoded)
        before = len(self.tokens)
        self.tokens += other.tokens
        self._crossed += other._crossed
        self._ready = None
        shapes = next((cache.shapes for cache in (self._cache, other._cache) if cache is not None), None)
        if shapes is None:
            return
        longest = max(self._lengths)
        if self._cache is None:
            self._cache = RowCache(shapes, before, longest)
        joining = RowCache(shapes, len(other.tokens), 1) if other._cache is None else other._cache
        self._cache.join(joining, other._read, longest)

    @property
    def _lengths(self) -> list[int]:
        return [len(row) for row in self.tokens]

    @property
    def _read(self) -> list[int]:
        return [len(row) if crossed else 0 for row, crossed in zip(self.tokens, self._crossed, strict=True)]

    def _cross(self, rows: Sequence[int]) -> None:
        """Keys and values of some rows' sources, beside rows that have theirs or need none."""
        states = pad_sequence(self.encoded.of(rows), batch_first=True)
        _, mask = padded([self.tokens[b] for b in rows], self.network.device)
        past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # The cross attention of any token leaves them in the cache; all else it computes is not asked for.
        start = torch.zeros(len(rows), 1, dtype=torch.long, device=self.network.device)
        if self._hidden is not None:
            start = states.new_zeros(len(rows), 1, self._hidden)
        run(self.network, Pass(wanted=0), start, past, source=Source(self.encoded.kind(last_hidden_state=states), mask))
        tensors = states_in(past.cross_attention_cache)
        if self._cache is None:
            shapes = [Shape.of(tensor) for tensor in tensors]
            self._cache = RowCache(shapes, len(self.tokens), max(self._lengths))
        self._cache.write(rows, tensors)
        self._ready = None
        for b in rows:
            self._crossed[b] = True

    def _crossing(self, rows: slice) -> Cache:
        assert self._cache is not None
        width = max(self._lengths[rows])
        return cache_over([tensor[rows, ..., :width, :] for tensor in self._cache.tensors], width, None)

    def _source(self, rows: slice) -> Source:
        """The encoder's output and its mask, None where no row is padded."""
        chosen = range(len(self.tokens))[rows]
        # Rows that are not encoded read nothing in this pass.
        fresh = not any(self._crossed)
        wanted = [b for b in chosen if fresh or self._crossed[b]]
        known = dict(zip(wanted, self.encoded.of(wanted), strict=True))
        some = next(iter(known.values()))
        states = [known.get(b, some.new_zeros(len(self.tokens[b]), some.shape[1])) for b in chosen]
        together = states[0][None] if len(states) == 1 else pad_sequence(states, batch_first=True)
        return Source(
            self.encoded.kind(last_hidden_state=together),
            padded([self.tokens[b] for b in chosen], self.network.device)[1],
        )


def padded(tokens: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Ids ``[B, S]`` and their mask, None where no row is padded."""
    counts = [len(row) for row in tokens]
    width = max(counts)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], dtype=torch.long, device=device)
    if min(counts) == width:
        return ids, None
    lengths = torch.tensor(counts, device=device)
    return ids, (torch.arange(width, device=device) < lengths[:, None]).long()
