"""The two passes of a network that are worth compiling: encode a source, and read new tokens.

Both run transformers' own modules. What makes them compilable is what is handed in: storage of fixed
place for keys and values, a mask and positions of our own, everything else as plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from bild.decoding.scores import widened
from bild.models import kernels
from bild.models.cache_argument import cache_argument
from bild.models.compiled.cache import RowLayer, SourceLayer, of_places
from bild.models.parts import encoder_config, encoder_of, states_in
from bild.models.passes import Placed, as_attended, masks, placed, run
from bild.models.passes import Source as Encoded
from bild.models.seams import Pass
from bild.models.short_list import short_list_of

Source = tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]
"""Keys and values of the source in each decoder layer, and its mask."""


class Read(nn.Module):
    """Read new tokens on top of what each row has read, and score what may follow.

    Args:
        network: modules of our own, see :func:`~bild.models.seams.own_modules`.
        farthest: the last position its embeddings know, None where positions are relative.
        has_places: whether the rows of a pass are named, so that it need not be all rows, and one may come several
            times: with a token each, a ragged pass has no padding.
    """

    def __init__(self, network: PreTrainedModel, farthest: int | None, has_places: bool = False) -> None:
        super().__init__()
        self.network, self.farthest, self.has_places = network, farthest, has_places

    def forward(
        self,
        rows: Tensor,
        last: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        source_keys: Sequence[Tensor],
        source_values: Sequence[Tensor],
        source_mask: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """As :func:`summary`, of each row's last K new tokens.

        Args:
            rows: ``[B, 2 + T]``: how many tokens each row has read, how many are new, and those, padded on the
                right. One tensor, because making a small one costs as much as a small layer. With places
                ``[B, 3 + T]``: first, where in the storage each row is.
            last: ``0 … K − 1``: each row's last K new tokens are scored; before its first there is no meaning.
            keys: storage of each decoder layer ``[B, H, L, D]``, written in place; L ≥ tokens read + T.
            values: likewise.
            source_keys: of each decoder layer ``[B, H, S, D]``; empty for a decoder-only model.
            source_values: likewise.
            source_mask: ``[B, 1, 1, S]``, False where the source is padded; None for a decoder-only model.
        """
        places = rows[:, 0] if self.has_places else None
        new = placed(rows[:, 1:] if self.has_places else rows, last, places)
        return self.read(new, keys, values, (source_keys, source_values, source_mask))

    def read(self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source) -> tuple[Tensor, ...]:
        """What :meth:`forward` returns."""
        now = Pass(new.positions, new.ends, new.wanted)
        logits = self.run(now, new.tokens, new.positions, keys, values, source, new.places)
        return summary(logits, short_list_of(self.network))

    def run(
        self,
        now: Pass,
        new: Tensor,
        positions: Tensor,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        source: Source,
        places: Tensor | None = None,
    ) -> Tensor:
        """Logits of a pass over tokens ``[B, T]``, or hidden states ``[B, T, D]``, at these positions."""
        source_keys, source_values, source_mask = source
        past: Any = Cache(layers=[RowLayer(*layer, positions, places) for layer in zip(keys, values, strict=True)])
        encoded = None
        if source_mask is not None:
            source_mask = of_places(source_mask, places)
            pairs = zip(source_keys, source_values, strict=True)
            layers: list[Any] = [SourceLayer(*layer, places) for layer in pairs]
            past = EncoderDecoderCache(past, Cache(layers=layers))
            past.is_updated = dict.fromkeys(range(len(layers)), True)
            # Its keys and values are in the cache; only its shape is looked at.
            width = self.network.config.get_text_config(decoder=True).hidden_size
            states = source_keys[0].new_zeros(1).expand(*source_mask.shape[::3], width)
            encoded = Encoded(BaseModelOutput(last_hidden_state=states), as_attended(source_mask, self.network))
        mask = masks(self.network, positions, keys[0].shape[2])
        within = positions if self.farthest is None else positions.clamp(max=self.farthest)
        return run(self.network, now, new, past, mask=mask, positions=within, source=encoded)


class Encode(nn.Module):
    """Keys and values of the source in every decoder layer."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, sources: Tensor, mask: Tensor) -> list[Tensor]:
        """All keys, then all values, each ``[B, H, S, D]``.

        Args:
            sources: encoder input ids ``[B, S]``, padded on the right.
            mask: ``[B, 1, 1, S]``, False where padded.
        """
        return self.crossed(self.encoded(sources, mask), mask)

    def encoded(self, sources: Tensor, mask: Tensor) -> Any:
        """What the encoder makes of them."""
        return encoder_of(self.network)(input_ids=sources, attention_mask=self._seen(mask))

    def crossed(self, states: Any, mask: Tensor) -> list[Tensor]:
        """Keys and values of what an encoder has made of sources."""
        past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # The cross attention of any token leaves them in the cache; all else it computes is not asked for.
        start = torch.zeros_like(mask[:, 0, 0, :1], dtype=torch.long)
        cache = {cache_argument(self.network): past}
        attended = as_attended(mask, self.network)
        self.network(decoder_input_ids=start, encoder_outputs=states, attention_mask=attended, **cache)
        return states_in(past.cross_attention_cache)

    def _seen(self, mask: Tensor) -> Any:
        """What the encoder's tokens see, by kind of layer where some look through a window."""
        config = encoder_config(self.network)
        window = getattr(config, "sliding_window", None)
        full = as_attended(mask, self.network)
        if window is None or getattr(config, "layer_types", None) is None:
            return full
        column = torch.arange(mask.shape[-1], device=mask.device)
        near = within_window(column, window)[None, None]
        # Padding far from all tokens sees itself, for what sees nothing at all is NaN, and a masked NaN is still a NaN.
        seen = mask & near | (column[:, None] == column)
        return {"full_attention": full, "sliding_attention": as_attended(seen, self.network)}


class EncodeForBoth(nn.Module):
    """Keys and values of the source in every decoder layer of two networks: all keys, those of the first before those
    of the second, then all values.

    Args:
        large: as for :class:`Encode`.
        small: likewise.
        is_shared: whether the encoder of the first serves the second, too.
    """

    def __init__(self, large: PreTrainedModel, small: PreTrainedModel, is_shared: bool) -> None:
        super().__init__()
        self.large, self.small, self.is_shared = Encode(large), Encode(small), is_shared

    def forward(self, sources: Tensor, mask: Tensor) -> list[Tensor]:
        """As :meth:`Encode.forward`."""
        states = self.large.encoded(sources, mask)
        others = states if self.is_shared else self.small.encoded(sources, mask)
        sides = self.large.crossed(states, mask), self.small.crossed(others, mask)
        keys, values = ([each for side in sides for each in halves(side)[half]] for half in (0, 1))
        return [*keys, *values]


def halves(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of as many layers."""
    middle = len(tensors) // 2
    return tensors[:middle], tensors[middle:]


def within_window(column: Tensor, window: int) -> Tensor:
    """Which tokens an encoder's token sees through a window, to both sides ``[S, S]``, as transformers counts it."""
    return (column[:, None] - column).abs() <= window


def summary(logits: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``logits`` ``[B, K, V]``, and the fields of their :class:`~bild.decoding.scorer.Summary`.

    Where a kernel sums them up they stay in their format, because nobody looks at most of them; else they are float32
    at least.

    Args:
        logits: of all tokens, or of some.
        ids: which tokens they are of ``[V]``, ascending (:mod:`bild.models.short_list`); None: of all.
    """
    if kernels.can_sum_up(logits):
        places, probability, log_total = kernels.summary(logits)
    else:
        logits = widened(logits)
        places, probability, log_total = kernels.plain_summary(logits)
    return logits, places if ids is None else ids[places], probability, log_total
