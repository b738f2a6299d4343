"""How many tokens a network can place, by its configuration and by the tables it has."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from bild.models import rope
from bild.models.parts import decoder_of, encoder_config, encoder_of
from bild.models.seams import position_table

STATED = ("max_position_embeddings", "n_positions")


def max_positions(config: PreTrainedConfig) -> int | None:
    """Most tokens a decoder of this configuration can place, or None where positions are relative."""
    return _stated(config, config.get_text_config(decoder=True), "decoder")


def max_source_positions(config: PreTrainedConfig) -> int | None:
    """Most tokens an encoder of this configuration can place, or None where positions are relative."""
    return _stated(config, config.get_text_config(encoder=True), "encoder")


def most(limits: int | None, *others: int | None) -> int | None:
    """The lowest limit there is."""
    return min((each for each in (limits, *others) if each is not None), default=None)


def table_size(side: nn.Module) -> int | None:
    """Positions in an encoder's or decoder's table of learned or fixed positions; None where it has none."""
    module: Any = getattr(side, "embed_positions", None)
    if not isinstance(module, nn.Module) or not (hasattr(module, "weight") or hasattr(module, "weights")):
        return None
    table, offset = position_table(module)
    return table.shape[0] - offset


def limits_of(network: PreTrainedModel) -> tuple[int | None, int | None]:
    """Most tokens the decoder and the encoder of a network can place."""
    decoder = most(max_positions(network.config), table_size(decoder_of(network)))
    if not network.config.is_encoder_decoder:
        return decoder, None
    stated = _stated(network.config, encoder_config(network), "encoder")
    return decoder, most(stated, table_size(encoder_of(network)))


def _stated(config: PreTrainedConfig, text: PreTrainedConfig, side: str) -> int | None:
    if hasattr(config, "relative_attention_num_buckets"):
        return None
    # LED names one number a side.
    names = (f"max_{side}_position_embeddings", *STATED)
    stated = next((number for name in names if (number := getattr(text, name, None)) is not None), None)
    return None if stated is None else rope.reach(text, int(stated))
