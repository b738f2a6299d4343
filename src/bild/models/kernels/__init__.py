"""Kernels of our own, where torch has none that comes near what the processor can do.

:mod:`.linear` is a linear layer on int8 weights and int8 tokens: packing, reference, operator. :mod:`.building`
compiles its C++ at first use and keeps it; :mod:`.choosing` measures where it is the faster one,
:mod:`.joining` makes products of the same states one. Where there is no
compiler, or the processor lacks the instructions, what torch offers stays.
"""

from bild.models.kernels.choosing import is_faster
from bild.models.kernels.joining import join_products
from bild.models.kernels.linear import fits, graph_calls, int8_linear, pack, pad_scale, plain_int8_linear, unpack

__all__ = [
    "fits",
    "graph_calls",
    "int8_linear",
    "is_faster",
    "join_products",
    "pack",
    "pad_scale",
    "plain_int8_linear",
    "unpack",
]
