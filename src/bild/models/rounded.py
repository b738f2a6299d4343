"""Number formats of weights that are made when a network is loaded: which there are, and which a network is in."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bild.models.int4 import Int4Linear, to_int4
from bild.models.int8 import Int8Linear, to_int8
from bild.models.loading import INT4, INT8

ROUND = {INT8: to_int8, INT4: to_int4}


def round_weights(network: PreTrainedModel, dtype: Any) -> PreTrainedModel:
    """The network with its linear layers in the format of this name, in place; of other formats as it is.

    Raises:
        InputError, LoadError: it cannot be, here.
    """
    return ROUND[dtype](network) if dtype in ROUND else network


def rounded_format(network: nn.Module) -> str | None:
    """``"int8"`` or ``"int4"`` where a network's linear layers are in that, else None."""
    kinds = {type(module) for module in network.modules()}
    # The head of a network in int4 is in int8.
    return INT4 if Int4Linear in kinds else INT8 if Int8Linear in kinds else None
