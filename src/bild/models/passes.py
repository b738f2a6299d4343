"""One forward pass over rows that stand at positions of their own, for every runtime.

Masks and positions are made here and handed in; all else is transformers' own modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from bild.models.cache_argument import cache_argument
from bild.models.parts import decoder_config
from bild.models.seams import Pass, choose, takes_positions


class Placed(NamedTuple):
    """New tokens ``[B, T]``, their positions, which of them are scored ``[B, K]``, each row's length after them, and
    where in the storage it is."""

    tokens: Tensor
    positions: Tensor
    wanted: Tensor
    ends: Tensor
    places: Tensor | None = None


class Source(NamedTuple):
    """What the decoder asks of an encoder: its output ``[B, S, D]`` and the mask of its tokens."""

    states: Any
    mask: Tensor | None


def numbers_of(tokens: Sequence[Sequence[int]], lengths: Sequence[int], width: int) -> list[list[int]]:
    """One row of numbers each: how many tokens it has read, how many are new, and those, padded on the right."""
    return [[length, len(row), *pad(row, width)] for length, row in zip(lengths, tokens, strict=True)]


def placed(numbers: Tensor, last: Tensor, places: Tensor | None = None) -> Placed:
    """What stands in the rows of numbers.

    Args:
        numbers: ``[B, 2 + T]``, see :func:`numbers_of`.
        last: ``0 … K − 1``: each row's last K new tokens are scored; before its first there is no meaning.
        places: of the rows ``[B]``.
    """
    lengths, counts, tokens = numbers[:, :1], numbers[:, 1:2], numbers[:, 2:]
    wanted = (counts - last.shape[0] + last).clamp(min=0)
    positions = lengths + torch.arange(tokens.shape[1], device=tokens.device)
    return Placed(tokens, positions, wanted, (lengths + counts)[:, 0], places)


def run(
    network: PreTrainedModel,
    now: Pass,
    new: Tensor,
    past: Cache,
    *,
    mask: Any = None,
    positions: Tensor | None = None,
    source: Source | None = None,
) -> Tensor:
    """Logits of a pass over tokens ``[B, T]``, or hidden states ``[B, T, D]``: of the wanted columns, or of all.

    Args:
        network: modules of our own, see :func:`~bild.models.seams.own_modules`.
        now: what this pass hands to them.
        new: what is read.
        past: keys and values; written.
        mask: what each new token sees, None: all before it.
        positions: of each new token, as its embeddings may be asked for; None: the network counts.
        source: of an encoder-decoder.
    """
    name = "input_ids" if new.dim() == 2 else "inputs_embeds"
    inputs: dict[str, Any] = {"use_cache": True, cache_argument(network): past}
    if source is not None:
        inputs |= {f"decoder_{name}": new, "decoder_attention_mask": mask}
        inputs |= {"encoder_outputs": source.states, "attention_mask": source.mask}
    else:
        inputs |= {name: new, "attention_mask": mask}
        if positions is not None and takes_positions(network):
            inputs["position_ids"] = positions
    with now:
        logits: Tensor = network(**inputs).logits
    # A head that is no module of its own has seen all of them.
    return logits if now.wanted is None or now.chosen else choose(logits, now.wanted)


def masks(network: PreTrainedModel, positions: Tensor, columns: int) -> Tensor | dict[str, Tensor]:
    """Which columns each new token sees ``[B, 1, T, L]``, by kind of layer where there are several."""
    config = decoder_config(network)
    column, own = torch.arange(columns, device=positions.device), positions[..., None]
    seen = (column <= own)[:, None]
    found = {"full_attention": as_attended(seen, network)}
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    if window is not None:
        found["sliding_attention"] = as_attended(seen & (column > own - window)[:, None], network)
    if chunk is not None:
        found["chunked_attention"] = as_attended(seen & (column // chunk == own // chunk)[:, None], network)
    if getattr(config, "layer_types", None) is not None and len(found) > 1:
        return found
    return list(found.values())[-1]


def as_attended(seen: Tensor, network: PreTrainedModel) -> Tensor:
    """A mask as the network's attention takes it: eager attention adds it to the scores, the others choose by it."""
    if network.config._attn_implementation != "eager":
        return seen
    lowest = torch.finfo(network.dtype).min
    return torch.zeros_like(seen, dtype=network.dtype).masked_fill(~seen, lowest)


def check_last(tokens: Sequence[Sequence[int]], last: int) -> None:
    """Refuse to score more positions than the longest row has new tokens, or none."""
    width = max(len(row) for row in tokens)
    if not 1 <= last <= width:
        raise ValueError(f"cannot score {last} positions of {width} new tokens")


def pad(tokens: Sequence[int], width: int) -> list[int]:
    """``tokens`` filled up to ``width``; the filling is masked or forgotten, so any id will do."""
    return [*tokens, *[0] * (width - len(tokens))]
