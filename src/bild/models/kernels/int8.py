"""A linear layer on int8 weights and int8 tokens: how weights are packed, what it computes, and the operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from bild.models.kernels import building
from bild.models.kernels.choosing import LARGEST, is_faster
from bild.models.kernels.operators import DTYPES, INT8_ORDER, LINEAR, operator

UNIT = 32
"""Outputs that are packed together."""
MULTIPLE = 32
"""Input widths it takes."""
HAS_VNNI = building.has_vnni()
"""Whether the kernel multiplies by VNNI; else steps of four inputs go in pairs."""
PIECE = 256 if HAS_VNNI else 128
"""Inputs of a token that are rounded on one scale: SmolLM2's perplexity rises by 1.5 % with 256 of them, with all by 6.
AVX2 has fewer bits for weights, which shorter pieces make up for."""
SHIFT = 128 if HAS_VNNI else 0
"""What is added to weights: VNNI multiplies unsigned by signed numbers."""
MOST = 127 if HAS_VNNI else 64
"""The largest weight: AVX2 adds products in 16 bits (``int8.h``)."""
STEPS = PIECE // 4
"""Of four inputs each, in a piece."""
SINGLE = 128
"""What is added to the number of a step that goes with no other."""
TOKEN_SHIFT = 128
"""What AVX2 adds to tokens."""
AHEAD_OF_PIECE = STEPS + 4 * UNIT
"""Bytes in front of the steps of a piece, where they go in pairs: their order, and what each output owes."""
Multiply = Callable[[Tensor, Tensor, Tensor], Tensor]


def fits(outputs: int, inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a layer of this shape and number format can be kept packed on this device."""
    whole = inputs % MULTIPLE == 0 and outputs % UNIT == 0
    return device.type == "cpu" and dtype in DTYPES and whole and inputs > 0


def int8_linear(states: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """As :func:`plain_int8_linear`, on packed weights and all of torch's threads.

    Args:
        states: ``[…, in]``, bfloat16 or float32, its last dimension dense.
        weight: of :func:`pack`.
        scale: of :func:`pad_scale`.
        bias: ``[out]`` in the states' dtype.
        outputs: how many there are before padding.
    """
    product: Tensor = operator(LINEAR)(states, weight, scale, bias, outputs, torch.get_num_threads())
    return product


def plain_int8_linear(states: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The reference: pieces of rows rounded to int8, multiplied exactly, scaled back and added up in float32.

    Args:
        states: ``[…, in]``; a row that is not finite yields NaN.
        weight: int8 ``[out, in]``.
        scale: of each output ``[out]``.
        bias: ``[out]``.
    """
    sums = states.new_zeros(*states.shape[:-1], len(weight), dtype=torch.float32)
    for piece, part in zip(pieces(states), pieces(weight), strict=True):
        rounded, step = round_piece(piece)
        # By way of double: a multiplication and an addition with one rounding.
        sums = (sums.double() + (rounded @ part.double().t()) * step).float()
    product = (sums * scale.float()).to(states.dtype)
    return product if bias is None else product + bias


def pieces(states: Tensor) -> Iterator[Tensor]:
    """Inputs that are rounded together ``[…, 256]``, the last ones fewer."""
    return (states[..., begin : begin + PIECE] for begin in range(0, states.shape[-1], PIECE))


def round_piece(piece: Tensor) -> tuple[Tensor, Tensor]:
    """A piece of each row as whole numbers from −127 to 127 ``[…, in]``, and their step ``[…, 1]``, both in double."""
    wide = piece.float()
    step = (wide.abs().amax(-1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    # Not divided: that takes a processor sixteen times as long.
    return (wide * (1 / step)).round().clamp(-127, 127).double(), step.double()


def is_faster_here(weight: Tensor, scale: Tensor, today: Multiply) -> bool:
    """Whether our kernel beats another one on a layer of this shape.

    Args:
        weight: int8 ``[out, in]``, at most :data:`MOST`.
        scale: of each output, in the dtype of the layer's states.
        today: the other one, of states ``[rows, in]``, a weight and its scale.
    """
    outputs, inputs = weight.shape
    if not fits(outputs, inputs, scale.dtype, weight.device) or operator(LINEAR) is None:
        return False
    dtype = str(scale.dtype).removeprefix("torch.")
    weight, scale = weight[:LARGEST], scale[:LARGEST]
    packed, padded = pack(weight), pad_scale(scale)
    return is_faster(
        f"{inputs}->{outputs} int8 {dtype}",
        ours=lambda states: int8_linear(states, packed, padded, None, len(weight)),
        theirs=lambda states: today(states, weight, scale),
        plain=lambda states: plain_int8_linear(states, weight, scale, None),
        inputs=inputs,
        dtype=scale.dtype,
    )


def pack(weight: Tensor) -> Tensor:
    """An int8 weight ``[out, in]`` in the kernel's order, as ``int8.h`` says.

    What is returned is called int8 ``[out, …]`` all the same, padded to whole units: transformers asks the weight of a
    layer for its dtype, and of a head for its shape.

    Raises:
        ValueError: a weight beyond :data:`MOST`.
    """
    if weight.numel() and max(int(weight.max()), -int(weight.min())) > MOST:
        raise ValueError(f"an int8 weight is beyond {MOST}, the largest one that the kernel takes here")
    whole = functional.pad(weight, (0, 0, 0, -weight.shape[0] % UNIT)).contiguous()
    stored = (whole.to(torch.int16) + SHIFT).to(torch.uint8)
    steps = stored.view(-1, UNIT, weight.shape[1] // 4, 4).transpose(1, 2)
    stream = steps if HAS_VNNI else _in_pairs(steps, _order(whole))
    return stream.reshape(len(whole), -1).view(torch.int8)


def unpack(packed: Tensor, outputs: int) -> Tensor:
    """The int8 weight ``[out, in]`` that was packed."""
    stream = packed.view(torch.uint8).view(len(packed) // UNIT, -1)
    steps = stream.view(len(stream), -1, UNIT, 4) if HAS_VNNI else _out_of_pairs(stream)
    stored = steps.transpose(1, 2).reshape(len(packed), -1)[:outputs]
    return (stored.to(torch.int16) - SHIFT).to(torch.int8)


def _order(whole: Tensor) -> Tensor:
    """Of each unit which step of its piece stands where ``[out / 32, in / 4]``, :data:`SINGLE` more where alone."""
    order: Tensor = operator(INT8_ORDER)(whole, torch.get_num_threads())
    return order


def _in_pairs(steps: Tensor, order: Tensor) -> Tensor:
    """Of each unit one stream: the steps of each piece in this order, behind it and what each output owes."""
    parts = []
    for some, places in zip(torch.split(steps, STEPS, 1), torch.split(order, STEPS, 1), strict=True):
        units = torch.arange(len(steps))[:, None]
        owed = -TOKEN_SHIFT * some.view(torch.int8).sum((1, 3), dtype=torch.int32)
        parts += [
            functional.pad(places, (0, STEPS - places.shape[1])),
            owed.view(torch.uint8),
            some[units, places.long() % SINGLE].flatten(1),
        ]
    return torch.cat(parts, 1)


def _out_of_pairs(stream: Tensor) -> Tensor:
    """Where they stood before :func:`_in_pairs`."""
    parts = []
    for piece in torch.split(stream, AHEAD_OF_PIECE + PIECE * UNIT, 1):
        steps = piece[:, AHEAD_OF_PIECE:].reshape(len(stream), -1, UNIT, 4)
        places = piece[:, : steps.shape[1]].long() % SINGLE
        parts.append(steps[torch.arange(len(stream))[:, None], places.argsort(1)])
    return torch.cat(parts, 1)


def pad_scale(scale: Tensor) -> Tensor:
    """Scales ``[out]`` in float32, padded to whole units."""
    return functional.pad(scale.float(), (0, -scale.shape[0] % UNIT))
