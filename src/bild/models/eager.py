"""Any Hugging Face checkpoint behind the Scorer contract, on dynamic caches, uncompiled.

Layout of a batch: before a pass, column ``size − 1`` holds the newest token of every row, older
ones to its left; unused columns at the far left are masked. New tokens are padded on the right.
After a pass a row may own ``tail`` columns of padding and forgotten tokens at the right; before the
next one they are rolled around to the left, where the mask covers them. Relative position biases
see differences of columns only and rotary keys carry their position, so a rolled row scores as if
it had never moved. (Padding on the left of the first pass would spare a roll, but there a padded
column sees nothing at all, and in 16 and 64 bits some attention turns that into NaN.)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.utils import ModelOutput

from bild.errors import LoadError


class EagerModel:
    """A loaded network that can start reading new texts.

    Args:
        network: encoder-decoder or decoder-only model with a language-model head, in eval mode.

    Raises:
        LoadError: its cache cannot roll back (recurrent state) or cannot take several tokens at once.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network.eval()
        self.config = network.config
        # Read once: transformers looks through the parameters each time it is asked.
        self.device, self.dtype = network.device, network.dtype
        self.is_encoder_decoder: bool = bool(self.config.is_encoder_decoder)
        parameters = inspect.signature(network.forward).parameters
        self.takes_position_ids = "position_ids" in parameters
        self.takes_logits_to_keep = "logits_to_keep" in parameters
        self.vocab_size: int = _head_size(network)
        self._refuse_uncroppable()
        self._batches = self._promises_batches()
        self._probe()

    @property
    def batches(self) -> bool:
        """Whether rows of different length can share a batch."""
        return self._batches

    @property
    def max_positions(self) -> int | None:
        """Most tokens the decoder can place, or None where positions are relative."""
        if hasattr(self.config, "relative_attention_num_buckets"):
            return None
        text = self.config.get_text_config(decoder=True)
        return getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)

    @property
    def max_source_positions(self) -> int | None:
        """Most tokens the encoder can place, or None where positions are relative."""
        return self.max_positions if self.is_encoder_decoder else None

    def start(self, sources: Sequence[Sequence[int]]) -> EagerScorer:
        """Begin a batch.

        Args:
            sources: encoder input ids, one list a row; empty lists for a decoder-only model.
        """
        return EagerScorer(self, sources)

    def encode(self, sources: Sequence[Sequence[int]]) -> tuple[ModelOutput, Tensor | None]:
        """The encoder's output and its mask ``[B, S]``, None where no row is padded."""
        width = max(len(source) for source in sources)
        ids = torch.tensor([pad(source, width) for source in sources], device=self.device)
        mask = None
        if any(len(source) < width for source in sources):
            lengths = torch.tensor([len(source) for source in sources], device=self.device)
            mask = (torch.arange(width, device=self.device) < lengths[:, None]).long()
        return self.network.get_encoder()(input_ids=ids, attention_mask=mask), mask

    def _refuse_uncroppable(self) -> None:
        cache = DynamicCache(config=self.config.get_text_config(decoder=True))
        if getattr(self.network, "_is_stateful", False) or not cache.is_croppable:
            raise LoadError(
                f"{type(self.network).__name__} keeps a recurrent state that cannot be rolled back; "
                "use a model with attention layers only"
            )

    def _promises_batches(self) -> bool:
        """A decoder-only model must take ``position_ids``; an encoder-decoder must know positions as
        differences only (T5 and its kin): BART and Marian count columns inside."""
        if self.is_encoder_decoder:
            return hasattr(self.config, "relative_attention_num_buckets")
        return self.takes_position_ids

    def _probe_tokens(self) -> tuple[list[int], list[int]]:
        """A source and five tokens to try a network with."""
        tokens = [self.vocab_size // 2 + i % max(1, self.vocab_size // 2) for i in range(5)]
        return tokens[:3] if self.is_encoder_decoder else [], tokens

    def _probe(self) -> None:
        """Read a few tokens in one piece, in two and in a batch: the three must agree.

        Some architectures have no cache, take one token at a time or lose causality when they take
        several; better refused here than wrong in the middle of a text.
        """
        source, tokens = self._probe_tokens()
        try:
            whole = self.start([source]).extend([tokens], last=5)[0]
            scorer = self.start([source])
            pieces = torch.cat([scorer.extend([tokens[:2]], last=2)[0], scorer.extend([tokens[2:]], last=3)[0]])
        except Exception as error:
            raise LoadError(
                f"{type(self.network).__name__} cannot read several tokens on top of a cache "
                f"({type(error).__name__}); it cannot verify drafts"
            ) from error
        if scorer._cache.get_seq_length() != len(tokens) or disagree(whole, pieces):
            raise LoadError(
                f"{type(self.network).__name__} scores tokens differently when it reads several on top of a cache; "
                "it cannot verify drafts"
            )
        if self._batches:
            batch = self.start([source, source])
            batch.extend([tokens[:1], tokens[:3]])
            self._batches = not disagree(whole[1:2], batch.extend([tokens[1:2], []])[0])


def disagree(one: Tensor, other: Tensor) -> bool:
    """Whether two computations of the same logits differ by more than rounding in 16 bits."""
    one, other = one.float(), other.float()
    spread = (one - one.mean(-1, keepdim=True)).norm()
    return not bool((one - other).norm() <= 0.1 * spread + 1e-3)


def _head_size(network: PreTrainedModel) -> int:
    head = network.get_output_embeddings()
    if head is None:
        raise LoadError(f"{type(network).__name__} has no language-model head; use a model that generates text")
    return int(head.weight.shape[0])


class EagerScorer:
    """One batch being read by an :class:`EagerModel`; see :class:`bild.decoding.Scorer`."""

    def __init__(self, model: EagerModel, sources: Sequence[Sequence[int]]) -> None:
        self.model = model
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

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        # Entering the mode costs as much as a small matrix product, so not twice.
        if torch.is_inference_mode_enabled():
            return self._extend(tokens, last)
        with torch.inference_mode():
            return self._extend(tokens, last)

    def _extend(self, tokens: Sequence[Sequence[int]], last: int) -> Tensor:
        counts = [len(row) for row in tokens]
        width = max(counts)
        if not 1 <= last <= width:
            raise ValueError(f"cannot score {last} positions of {width} new tokens")
        self._align()
        padding = [self._size - length for length in self._lengths]
        ids = torch.tensor([pad(row, width) for row in tokens], device=self.model.device)
        ragged = any(padding) or min(counts) < width
        logits = self._forward(ids, padding if ragged else None, counts, last)
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

    def _forward(self, ids: Tensor, padding: Sequence[int] | None, counts: Sequence[int], last: int) -> Tensor:
        """Logits ``[B, last, V]`` after each row's last new tokens.

        Args:
            ids: new tokens ``[B, T]``, padded on the right.
            padding: masked columns that lead each row; None where the batch is a full rectangle.
            counts: new tokens of each row.
            last: positions to score.
        """
        inputs: dict[str, Any] = {"past_key_values": self._past, "use_cache": True}
        mask = positions = None
        if padding is not None:
            columns = torch.arange(self._size + ids.shape[1], device=ids.device)
            leading = torch.tensor(padding, device=ids.device)[:, None]
            mask = (columns >= leading).long()
            positions = columns[self._size :] - leading
        if self.model.is_encoder_decoder:
            if self._encoded is None:
                # Only now: a text the small model ends unread never costs the large model's encoder.
                self._encoded, self._source_mask = self.model.encode(self._sources)
            inputs["decoder_input_ids"] = ids
            inputs["decoder_attention_mask"] = mask
            inputs["encoder_outputs"] = self._encoded
            inputs["attention_mask"] = self._source_mask
        else:
            inputs["input_ids"] = ids
            inputs["attention_mask"] = mask
            if positions is not None:
                # Padding may lie beyond the model's last position, where learned embeddings end.
                farthest = None if self.model.max_positions is None else self.model.max_positions - 1
                inputs["position_ids"] = positions.clamp(0, farthest)
        if padding is None:
            logits = self._logits(inputs, last)
            return logits if logits.shape[1] == last else logits[:, -last:]
        # Each row ends in a column of its own; the head is computed for the columns some row asks for.
        wanted = torch.tensor([[max(0, count - last + i) for i in range(last)] for count in counts], device=ids.device)
        kept, index = wanted.unique(return_inverse=True)
        logits = self._logits(inputs, kept)
        return logits.take_along_dim((index if logits.shape[1] == len(kept) else wanted)[..., None], dim=1)

    def _logits(self, inputs: dict[str, Any], kept: int | Tensor) -> Tensor:
        """One pass; logits of the ``kept`` columns, or of all where the network cannot choose."""
        if self.model.takes_logits_to_keep:
            inputs["logits_to_keep"] = kept
        logits: Tensor = self.model.network(**inputs).logits
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
        index = (columns % self._size)[:, None, :, None]
        for layer in self._cache.layers:
            layer.keys = layer.keys.take_along_dim(index, dim=2)
            layer.values = layer.values.take_along_dim(index, dim=2)


def pad(tokens: Sequence[int], width: int) -> list[int]:
    """``tokens`` filled up to ``width``; the filling is masked or forgotten, so any id will do."""
    return [*tokens, *[0] * (width - len(tokens))]
