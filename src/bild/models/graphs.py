"""The two passes of a network that are worth compiling: encode a source, and read new tokens.

Both run transformers' own modules. What makes them compilable is what is handed in: storage of fixed
place for keys and values, a mask and positions of our own, everything else as plain tensors.

Layout of a batch: token ``t`` of row ``b`` stands in column ``t`` of the row's storage, whatever its
neighbours have read. A row sees the columns up to its own token, so whatever a rollback or padding left
behind them is masked until it is overwritten, and forgetting is lowering a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import StaticLayer
from transformers.modeling_outputs import BaseModelOutput

from bild.models.cache_argument import cache_argument
from bild.models.position_bias import relative_bias_modules

Source = tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]
"""Keys and values of the source in each decoder layer, and its mask."""


class RowLayer(StaticLayer):
    """A layer's keys and values ``[B, H, L, D]``; each row writes behind its own tokens.

    Args:
        keys: storage, written in place.
        values: likewise.
        positions: column of each new token ``[B, T]``.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.positions = keys, values, positions
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values ``[B, H, T, D]``; return the whole storage."""
        rows = torch.arange(self.positions.shape[0], device=self.positions.device)[:, None]
        for storage, states in ((self.keys, key_states), (self.values, value_states)):
            storage.transpose(1, 2).index_put_((rows, self.positions), states.transpose(1, 2).to(storage.dtype))
        return self.keys, self.values

    def get_seq_length(self) -> Tensor:  # type: ignore[override]
        """Tokens read, of the first row: only networks that decode row by row ask."""
        return self.positions[0, 0]


class SourceLayer(StaticLayer):
    """A layer's keys and values of the source, computed once a request."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values = keys, values
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Any number above zero: the layer is filled."""
        return 1


class Placed(NamedTuple):
    """New tokens ``[B, T]``, their positions, and which of them are scored ``[B, K]``."""

    tokens: Tensor
    positions: Tensor
    wanted: Tensor


class Read(nn.Module):
    """Read new tokens on top of what each row has read, and score what may follow.

    Args:
        network: the model.
        farthest: the last position its embeddings know, None where positions are relative.
    """

    def __init__(self, network: PreTrainedModel, farthest: int | None) -> None:
        super().__init__()
        self.network, self.farthest = network, farthest

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
                right. One tensor, because making a small one costs as much as a small layer.
            last: ``0 … K − 1``: each row's last K new tokens are scored; before its first there is no meaning.
            keys: storage of each decoder layer ``[B, H, L, D]``, written in place; L ≥ tokens read + T.
            values: likewise.
            source_keys: of each decoder layer ``[B, H, S, D]``; empty for a decoder-only model.
            source_values: likewise.
            source_mask: ``[B, 1, 1, S]``, False where the source is padded; None for a decoder-only model.
        """
        return self._read(placed(rows, last), keys, values, (source_keys, source_values, source_mask))

    def _read(
        self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source
    ) -> tuple[Tensor, ...]:
        with _head_of(self.network, new.wanted):
            return summary(self._run(new.tokens, new.positions, keys, values, source))

    def _run(
        self, new: Tensor, positions: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source
    ) -> Tensor:
        """Logits of a pass over tokens ``[B, T]``, or hidden states ``[B, T, D]``, at these positions."""
        source_keys, source_values, source_mask = source
        past: Any = Cache(layers=[RowLayer(*layer, positions) for layer in zip(keys, values, strict=True)])
        mask = self._masks(positions, keys[0].shape[2])
        name = "input_ids" if new.dim() == 2 else "inputs_embeds"
        inputs: dict[str, Any] = {"use_cache": True}
        if source_mask is not None:
            layers = [SourceLayer(*layer) for layer in zip(source_keys, source_values, strict=True)]
            past = EncoderDecoderCache(past, Cache(layers=layers))
            past.is_updated = dict.fromkeys(range(len(layers)), True)
            # Its keys and values are in the cache; only its shape is looked at.
            width = self.network.config.get_text_config(decoder=True).hidden_size
            states = source_keys[0].new_zeros(1).expand(*source_mask.shape[::3], width)
            inputs |= {f"decoder_{name}": new, "decoder_attention_mask": mask}
            inputs |= {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
            inputs |= {"attention_mask": _as_attended(source_mask, self.network)}
        else:
            within = positions if self.farthest is None else positions.clamp(max=self.farthest)
            inputs |= {name: new, "attention_mask": mask, "position_ids": within}
        with _biases_by_row(self.network, positions):
            logits: Tensor = self.network(**inputs, **{cache_argument(self.network): past}).logits
        return logits

    def _masks(self, positions: Tensor, columns: int) -> Tensor | dict[str, Tensor]:
        """Which columns each new token sees ``[B, 1, T, L]``, by kind of layer where there are several."""
        config = self.network.config.get_text_config(decoder=True)
        column = torch.arange(columns, device=positions.device)
        seen = (column <= positions[..., None])[:, None]
        full = _as_attended(seen, self.network)
        window = getattr(config, "sliding_window", None)
        if window is None:
            return full
        near = _as_attended(seen & (column > positions[..., None] - window)[:, None], self.network)
        if getattr(config, "layer_types", None) is None:
            return near
        return {"full_attention": full, "sliding_attention": near}


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
        mask = _as_attended(mask, self.network)
        states = self.network.get_encoder()(input_ids=sources, attention_mask=mask)
        past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        # The cross attention of any token leaves them in the cache; all else it computes is not asked for.
        start = torch.zeros_like(sources[:, :1])
        cache = {cache_argument(self.network): past}
        self.network(decoder_input_ids=start, encoder_outputs=states, attention_mask=mask, **cache)
        layers = past.cross_attention_cache.layers
        return [*(layer.keys for layer in layers), *(layer.values for layer in layers)]


def summary(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``logits`` ``[B, K, V]``, at least float32, and the fields of :class:`~bild.decoding.scorer.Summary`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Here they ride along with the head; as operations of their own they cost as much as a small model's layer.
    highest = logits.amax(-1)
    total = (logits - highest[..., None]).exp().sum(-1)
    return logits, logits.argmax(-1), 1 / total, highest + total.log()


def placed(rows: Tensor, last: Tensor) -> Placed:
    """What stands in ``rows``; arguments as :meth:`Read.forward`."""
    lengths, counts, tokens = rows[:, :1], rows[:, 1:2], rows[:, 2:]
    wanted = (counts - last.shape[0] + last).clamp(min=0)
    return Placed(tokens, lengths + torch.arange(tokens.shape[1], device=tokens.device), wanted)


def choose(states: Tensor, columns: Tensor) -> Tensor:
    """``states`` ``[B, T, D]`` at the columns ``[B, K]``."""
    return states.gather(1, columns[..., None].expand(-1, -1, states.shape[-1]))


def _as_attended(seen: Tensor, network: PreTrainedModel) -> Tensor:
    """A mask as the network's attention takes it: eager attention adds it to the scores, the others choose by it."""
    if network.config._attn_implementation != "eager":
        return seen
    lowest = torch.finfo(network.dtype).min
    return torch.where(seen, 0.0, lowest).to(network.dtype)


@contextmanager
def _head_of(network: PreTrainedModel, wanted: Tensor) -> Iterator[None]:
    """Let the head see only the positions that somebody asked for."""
    head = network.get_output_embeddings()

    hook = head.register_forward_pre_hook(lambda _, inputs: (choose(inputs[0], wanted),))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _biases_by_row(network: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """T5's relative position biases for rows that stand at positions of their own.

    transformers computes them for one position a batch (``compute_bias``, same formula).
    """
    changed = relative_bias_modules(network)
    own = [module.__dict__.get("compute_bias") for module in changed]
    for module in changed:
        module.compute_bias = _row_bias(module, positions)
    try:
        yield
    finally:
        for module, before in zip(changed, own, strict=True):
            if before is None:
                del module.compute_bias
            else:
                module.compute_bias = before


def _row_bias(module: Any, positions: Tensor) -> Any:
    # UMT5's buckets know all this of themselves.
    taken = inspect.signature(module._relative_position_bucket).parameters
    known = {
        "bidirectional": False,
        "num_buckets": module.relative_attention_num_buckets,
        "max_distance": module.relative_attention_max_distance,
    }
    options = {name: value for name, value in known.items() if name in taken}

    def compute_bias(query_length: int, key_length: int, device: Any = None, past_seen_tokens: Any = 0) -> Tensor:
        distance = torch.arange(key_length, device=positions.device) - positions[..., None]
        bucket = module._relative_position_bucket(distance, **options)
        return module.relative_attention_bias(bucket).permute(0, 3, 1, 2)

    return compute_bias
