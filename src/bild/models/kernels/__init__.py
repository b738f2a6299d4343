"""Kernels of our own, where torch has none that comes near what the processor can do.

:mod:`.int8` is a linear layer on int8 weights and int8 tokens, :mod:`.int4` one on 4-bit weights, :mod:`.floats` one on
bfloat16 or float32, :mod:`.attention` that over stored keys and values, :mod:`.activation` what follows the first
products of a feed-forward layer, :mod:`.summary` what matters most of a token's scores: packing, references, and their
places in compiled graphs. :mod:`.building` compiles the C++ at first use and keeps it, :mod:`.operators` makes torch
operators of it; :mod:`.choosing` measures where a kernel is the faster one, :mod:`.joining` makes products of the same
states one. Where there is no compiler, or the processor lacks the instructions, what torch offers stays; for 4 bits it
has nothing.
"""

from bild.models.kernels.activation import replace_activations
from bild.models.kernels.attention import are_supported, replace_attention
from bild.models.kernels.building import digest, is_loaded
from bild.models.kernels.floats import replace_linears
from bild.models.kernels.int4 import (
    has_int4,
    int4_linear,
    pack_int4,
    plain_int4_linear,
    round_groups,
    round_to_int4,
    unpack_int4,
    widen_int4,
)
from bild.models.kernels.int8 import (
    MOST,
    fits,
    int8_linear,
    is_faster_here,
    pack,
    pad_scale,
    plain_int8_linear,
    unpack,
)
from bild.models.kernels.joining import has_all_products, join_products
from bild.models.kernels.operators import graph_calls
from bild.models.kernels.summary import can_sum_up, plain_summary, summary

__all__ = [
    "MOST",
    "are_supported",
    "can_sum_up",
    "digest",
    "fits",
    "graph_calls",
    "has_all_products",
    "has_int4",
    "int4_linear",
    "int8_linear",
    "is_faster_here",
    "is_loaded",
    "join_products",
    "pack",
    "pack_int4",
    "pad_scale",
    "plain_int4_linear",
    "plain_int8_linear",
    "plain_summary",
    "replace_activations",
    "replace_attention",
    "replace_linears",
    "round_groups",
    "round_to_int4",
    "summary",
    "unpack",
    "unpack_int4",
    "widen_int4",
]
