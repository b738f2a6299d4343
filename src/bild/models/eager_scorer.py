"""One batch being read on dynamic caches.

Layout of a batch: before a pass, column ``size − 1`` holds the newest token of every row, older
ones to its left; unused columns at the far left are masked. New tokens are padded on the right.
After a pass a row may own ``tail`` columns of padding and forgotten tokens at the right; before the
next one they are rolled around to the left, where the mask covers them. Relative position biases
see differences of columns only and rotary keys carry their position, so a rolled row scores as if
it had never moved. (Padding on the left of the first pass would spare a roll, but there a padded
column sees nothing at all, and in 16 and 64 bits some attention turns that into NaN.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from bild.models.cache_argument import cache_argument

if TYPE_CHECKING:
    from bild.models.eager import EagerModel


class EagerScorer:
    """One batch being read by an :class:`EagerModel`; see :class:`bild.decoding.Scorer`."""

    def __init__(self, model: EagerModel, sources: Sequence[Sequence[int]]) -> None:
        self.model, self._network = model, model.network
        self._sources = list(sources)
        self._encoded: ModelOutput | None = None
        self._source_mask: Tensor | None = None
        self._lengths = [0] * len(sources)
        self._tails = [0] * len(sources)
        self._size = 0
        # Full-length layers also where the model attends through a sliding window: its mask does the
        # sliding, and nothing is lost that a rollback may need. Built without a config, the cache grows
        # by the decoder's layers (with one, T5's would have the encoder's count).
        self._cache = DynamicCache()
        self._past = EncoderDecoderCache(self._cache, DynamicCache()) if model.is_encoder_decoder else self._cache

    def take_encoded(self, encoded: Sequence[Tensor]) -> None:
        """Go by what the encoder has made of each source ``[S, H]`` before, in place of computing it."""
        self._encoded = BaseModelOutput(last_hidden_state=pad_sequence(list(encoded), batch_first=True))
        self._source_mask = self.model.source_mask(self._sources)

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        check_last(tokens, last)
        return self._extend(tokens, last)

    def _extend(self, tokens: Sequence[Sequence[int]], last: int) -> Tensor:
        # Entering the mode costs as much as a small matrix product, so not twice.
        if torch.is_inference_mode_enabled():
            return self._pass(tokens, last)
        with torch.inference_mode():
            return self._pass(tokens, last)

    def _pass(self, tokens: Sequence[Sequence[int]], last: int) -> Tensor:
        counts = [len(row) for row in tokens]
        width = max(counts)
        self._align()
        padding = [self._size - length for length in self._lengths]
        ragged = any(padding) or min(counts) < width
        logits = self._forward(self._new(tokens, width), padding if ragged else None, counts, last)
        self._size += width
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        self._tails = [width - count for count in counts]
        return logits

    def truncate(self, lengths: Sequence[int]) -> None:
        for b, length in enumerate(lengths):
            excess = self._lengths[b] - length
            if excess > 0:
                self._lengths[b] -= excess
                self._tails[b] += excess

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        self._sources = [self._sources[b] for b in rows]
        index = torch.tensor(rows, device=self.model.device)
        self._past.batch_select_indices(index)
        self._lengths = [self._lengths[b] for b in rows]
        self._tails = [self._tails[b] for b in rows]
        if self._encoded is not None:
            self._encoded.last_hidden_state = self._encoded.last_hidden_state[index]
        if self._source_mask is not None:
            self._source_mask = self._source_mask[index]

    def _new(self, tokens: Sequence[Sequence[int]], width: int) -> Tensor:
        """What the network reads of these tokens: ids ``[B, width]``, or hidden states ``[B, width, D]``."""
        return torch.tensor([pad(row, width) for row in tokens], device=self.model.device)

    def _source(self) -> tuple[ModelOutput, Tensor | None]:
        """The encoder's output and its mask, computed when they are first asked for."""
        if self._encoded is None:
            # Only now: a text the small model ends unread never costs the large model's encoder.
            self._encoded, self._source_mask = self.model.encode(self._sources)
        return self._encoded, self._source_mask

    def _forward(self, new: Tensor, padding: Sequence[int] | None, counts: Sequence[int], last: int) -> Tensor:
        """Logits ``[B, last, V]`` after each row's last new tokens.

        Args:
            new: token ids ``[B, T]`` or hidden states ``[B, T, D]``, padded on the right.
            padding: masked columns that lead each row; None where the batch is a full rectangle.
            counts: new tokens of each row.
            last: positions to score.
        """
        mask = positions = None
        if padding is not None:
            columns = torch.arange(self._size + new.shape[1], device=new.device)
            leading = torch.tensor(padding, device=new.device)[:, None]
            mask = (columns >= leading).long()
            positions = columns[self._size :] - leading
        inputs = self._inputs(new, mask, positions)
        if padding is None:
            logits = self._logits(inputs, last)
            return logits if logits.shape[1] == last else logits[:, -last:]
        # Each row ends in a column of its own; the head is computed for the columns some row asks for.
        ends = [[max(0, count - last + i) for i in range(last)] for count in counts]
        wanted = torch.tensor(ends, dtype=torch.long, device=new.device)
        kept, index = wanted.unique(return_inverse=True)
        logits = self._logits(inputs, kept)
        # Indexing by rows copies whole vectors; take_along_dim would look up every number of them by itself.
        return logits[rows_of(wanted), index if logits.shape[1] == len(kept) else wanted]

    def _inputs(self, new: Tensor, mask: Tensor | None, positions: Tensor | None) -> dict[str, Any]:
        """The arguments of the network's forward pass."""
        inputs: dict[str, Any] = {cache_argument(self._network): self._past, "use_cache": True}
        name = "input_ids" if new.dim() == 2 else "inputs_embeds"
        if self.model.is_encoder_decoder:
            inputs[f"decoder_{name}"] = new
            inputs["decoder_attention_mask"] = mask
            inputs["encoder_outputs"], inputs["attention_mask"] = self._source()
            return inputs
        inputs[name] = new
        inputs["attention_mask"] = mask
        if positions is not None:
            # Padding may lie beyond the model's last position, where learned embeddings end.
            farthest = None if self.model.max_positions is None else self.model.max_positions - 1
            inputs["position_ids"] = positions.clamp(0, farthest)
        return inputs

    def _logits(self, inputs: dict[str, Any], kept: int | Tensor) -> Tensor:
        """One pass; logits of the ``kept`` columns, or of all where the network cannot choose."""
        if self.model.takes_logits_to_keep:
            inputs["logits_to_keep"] = kept
        logits: Tensor = self._network(**inputs).logits
        return logits if logits.shape[-1] == self.model.vocab_size else logits[..., : self.model.vocab_size]

    def _align(self) -> None:
        """Drop forgotten columns that all rows share, roll the rest around to the masked left."""
        shared = min(self._tails)
        if shared:
            self._cache.crop(-shared)
            self._size -= shared
        shifts = [tail - shared for tail in self._tails]
        self._tails = [0] * len(shifts)
        # Columns that no row uses any more, so that a long batch does not grow by its rollbacks.
        unused = self._size - max(self._lengths)
        if any(shifts) or unused:
            self._roll(shifts, unused)
            self._size -= unused

    def _roll(self, shifts: Sequence[int], unused: int) -> None:
        """Move row ``b`` right by ``shifts[b]`` columns and drop the first ``unused`` ones."""
        device = self.model.device
        columns = torch.arange(unused, self._size, device=device) - torch.tensor(shifts, device=device)[:, None]
        index = (columns % self._size)[:, None]
        rows = rows_of(index)
        for layer in self._cache.layers:
            heads = torch.arange(layer.keys.shape[1], device=device)[:, None]
            layer.keys, layer.values = layer.keys[rows, heads, index], layer.values[rows, heads, index]


def check_last(tokens: Sequence[Sequence[int]], last: int) -> None:
    """Refuse to score more positions than the longest row has new tokens, or none."""
    width = max(len(row) for row in tokens)
    if not 1 <= last <= width:
        raise ValueError(f"cannot score {last} positions of {width} new tokens")


def rows_of(index: Tensor) -> Tensor:
    """The number of each row, to go with an index ``[B, …]`` of what it picks from that row."""
    rows = torch.arange(index.shape[0], device=index.device)
    return rows.view(-1, *[1] * (index.dim() - 1))


def pad(tokens: Sequence[int], width: int) -> list[int]:
    """``tokens`` filled up to ``width``; the filling is masked or forgotten, so any id will do."""
    return [*tokens, *[0] * (width - len(tokens))]
