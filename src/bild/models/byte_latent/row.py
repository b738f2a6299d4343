"""One text that a byte-latent network reads, each of its four stacks of layers on a cache of its own.

A byte is read whole when the patcher has said whether a patch ends with it, the patches that are complete have been
through the global layers, and the decoder has seen the byte beside the last of them. Nothing of this looks ahead, so
what was read of a prefix stays as it is when the text goes on.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

from bild.models.cache_argument import cache_argument
from bild.models.single_rows import crop

if TYPE_CHECKING:
    from bild.models.byte_latent.model import ByteModel


class ByteRow:
    """A text, read whole up to a byte, and by the local parts alone from there on.

    Args:
        model: what reads it.
    """

    def __init__(self, model: ByteModel) -> None:
        self.model = model
        self.tokens: list[int] = []
        """All bytes that the local encoder has read: it does the same in either way."""
        self.length = 0
        """Of these, read whole."""
        self._ends: list[int] = []
        """The last byte of each patch that is complete."""
        self._encoded = model.nothing
        """What the encoder has made of each byte ``[1, T, D]``."""
        self._patches = model.nothing
        """What the global layers have made of each patch ``[1, P, D]``."""
        self._patcher, self._encoder, self._global, self._decoder = (DynamicCache() for _ in range(4))

    def extend(self, tokens: Sequence[int], last: int) -> Tensor:
        """Read bytes whole; logits ``[K, V]`` after the last K of them, at most ``last``."""
        begin, end = self.length, self.length + len(tokens)
        if begin == end:
            return self._logits(self.model.nothing, 0)
        drafted = zip(self.tokens[begin:], tokens, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], drafted))
        self.forget(begin + same)
        crop(self._decoder, begin)
        self._encode(tokens[same:])
        first = self._ends[-1] + 1 if self._ends else 0
        self._complete([each for each in self._closed(begin, tokens) if each >= first])
        logits = self._decode(begin, last)
        self.length = end
        return logits

    def draft(self, tokens: Sequence[int], last: int) -> Tensor:
        """Likewise, by the local parts alone, beside the last patch that is known."""
        begin = len(self.tokens)
        self._encode(tokens)
        if not self._ends:
            # Whatever follows, the first byte is a patch.
            self._complete([0])
        return self._decode(begin, last)

    def truncate(self, length: int) -> None:
        """Forget everything after ``length`` bytes."""
        self.length = min(self.length, length)
        self.forget(length)
        crop(self._patcher, self.length)

    def copy(self) -> ByteRow:
        """Another row that has read the same."""
        other = copy.copy(self)
        other.tokens, other._ends = list(self.tokens), list(self._ends)
        other._patcher, other._encoder, other._global, other._decoder = copy.deepcopy(
            (self._patcher, self._encoder, self._global, self._decoder)
        )
        return other

    def forget(self, length: int) -> None:
        """Forget what the local parts have read after ``length`` bytes, but nothing that was read whole."""
        length = max(length, self.length)
        if length < len(self.tokens):
            del self.tokens[length:]
            self._encoded = self._encoded[:, :length]
            crop(self._encoder, length)
            crop(self._decoder, length)
            del self._ends[bisect_left(self._ends, length) :]
            self._patches = self._patches[:, : len(self._ends)]
            crop(self._global, len(self._ends))

    def _encode(self, tokens: Sequence[int]) -> None:
        """Let the local encoder read on."""
        if not tokens:
            return
        # Only where there is such a network.
        from transformers.models.blt.modeling_blt import compute_hash_embeddings

        parts, config, begin = self.model.parts, self.model.config, len(self.tokens)
        # An embedding is of the bytes before it, too.
        more = max(config.encoder_hash_byte_group_size) - 1
        ids = self.model.ids([*self.tokens[max(0, begin - more) :], *tokens])
        states = compute_hash_embeddings(
            ids,
            parts.local_encoder,
            parts.encoder_hash_tok_embedding,
            config.encoder_hash_byte_group_nb_functions,
            config.encoder_hash_byte_group_size,
            config.encoder_hash_byte_group_vocab,
        )[:, -len(tokens) :]
        states = _run(parts.local_encoder, states, self._encoder, begin, self.model.window)
        self.tokens += tokens
        self._encoded = states if begin == 0 else torch.cat([self._encoded, states], 1)

    def _closed(self, begin: int, tokens: Sequence[int]) -> list[int]:
        """Of new bytes, those that a patch ends with."""
        patcher, config = self.model.parts.patcher, self.model.config
        if not self.model.by_entropy:
            return list(range(begin, begin + len(tokens)))
        states = patcher.embed_tokens(self.model.ids(tokens))
        states = _run(patcher, states, self._patcher, begin, self.model.patcher_window)
        scores = patcher.lm_head(patcher.norm(states))
        expected: Any = torch.distributions.Categorical(logits=scores)
        ends = expected.entropy()[0] > config.patching_threshold
        return [begin + at for at, closes in enumerate(ends.tolist()) if closes or begin + at == 0]

    def _complete(self, ends: Sequence[int]) -> None:
        """Let the global layers read the patches that end with these bytes."""
        if not ends:
            return
        parts, encoder, config = self.model.parts, self.model.parts.local_encoder, self.model.config
        first, count, many = self._ends[-1] + 1 if self._ends else 0, len(ends), config.cross_attn_k
        bytes_ = self._encoded[:, first : ends[-1] + 1]
        of = self.model.ids([bisect_left(ends, first + at) for at in range(bytes_.shape[1])])
        patches = encoder.patch_embedding_projection(encoder.patch_reduce(bytes_, count, of))
        patches = patches.reshape(1, count * many, encoder.config.hidden_size)
        own = torch.arange(count, device=of.device).repeat_interleave(many)
        crossed = encoder.cross_attn_layers[-1](
            hidden_states=patches, cross_attention_states=bytes_, attention_mask=_mask(own[:, None] == of, bytes_)
        )[0]
        states = parts.global_transformer.token_embedding_projection((patches + crossed).view(1, count, -1))
        states = _run(parts.global_transformer, states, self._global, len(self._ends), None)
        self._patches = torch.cat([self._patches.to(states).view(1, -1, states.shape[-1]), states], 1)
        self._ends += ends

    def _decode(self, begin: int, last: int) -> Tensor:
        """Let the local decoder read on, each byte beside the last patch that was complete with it."""
        decoder, config = self.model.parts.local_decoder, self.model.config
        states, many = self._encoded[:, begin:], config.cross_attn_k
        # A patch that was complete: its last byte is this one, or one before it.
        of = [bisect_right(self._ends, begin + at) - 1 for at in range(states.shape[1])]
        patches = decoder.patch_embedding_projection(self._patches[:, of[0] : of[-1] + 1])
        patches = patches.reshape(1, patches.shape[1] * many, decoder.config.hidden_size)
        there = torch.arange(of[0], of[-1] + 1, device=states.device).repeat_interleave(many)
        beside = _mask(there == self.model.ids(of).T, states)
        crossing = decoder.cross_attn_layers

        def cross(index: int, states: Tensor) -> Tensor:
            if index and not decoder.config.cross_attn_all_layers:
                return states
            crossed: Tensor = crossing[index](
                hidden_states=states, cross_attention_states=patches, attention_mask=beside
            )[0]
            return states + crossed

        states = _run(decoder, states, self._decoder, begin, self.model.window, cross)
        return self._logits(states, last)

    def _logits(self, states: Tensor, last: int) -> Tensor:
        model = self.model
        count = min(last, states.shape[1])
        if not count:
            return torch.zeros(0, model.vocab_size, dtype=torch.float32, device=model.device)
        scored: Tensor = model.modules.lm_head(model.parts.local_decoder.norm(states[0, -count:])).float()
        return scored[:, : model.vocab_size]


def _run(stack: Any, states: Tensor, past: DynamicCache, begin: int, window: int | None, before: Any = None) -> Tensor:
    """What the layers of a stack make of new states ``[1, T, D]``, which stand behind ``begin`` others.

    Args:
        stack: has layers and rotary positions.
        states: of the new ones.
        past: keys and values of those before.
        begin: how many those are.
        window: how many states each one sees, itself included; None: all.
        before: what is done before each layer, told its number and the states.
    """
    places = torch.arange(begin, begin + states.shape[1], device=states.device)
    columns = torch.arange(begin + states.shape[1], device=states.device)
    seen = columns <= places[:, None]
    if window is not None:
        seen &= columns > places[:, None] - window
    mask, positions = _mask(seen, states), stack.rotary_emb(states, places[None])
    for index, layer in enumerate(stack.layers):
        if before is not None:
            states = before(index, states)
        states = layer(states, position_embeddings=positions, attention_mask=mask, **{cache_argument(layer): past})
    return states


def _mask(seen: Tensor, states: Tensor) -> Tensor:
    """What is added to scores ``[1, 1, Q, K]``: nothing where a query sees a key."""
    return torch.zeros(1, 1, *seen.shape, dtype=states.dtype, device=states.device).masked_fill(
        ~seen, torch.finfo(states.dtype).min
    )
