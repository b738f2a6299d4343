"""A linear layer on 4-bit weights and int8 tokens: how weights are packed, what it computes, and the operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from bild.models.kernels.int8 import UNIT, pieces, round_piece
from bild.models.kernels.operators import INT4_LINEAR, INT4_PACK, operator

GROUP = 32
"""Inputs that share a scale and a minimum."""
LEVELS = 15
"""The largest of the whole numbers that a weight is."""
CUTS = (13.0, 14.0, 15.0, 15.7, 16.4)
"""Steps that a group's range is cut into. Of more than 15 the ends are clipped; fewer are what a block that does not
use all of its numbers had."""
_STEPS = GROUP // 4
_BYTES = GROUP // 2 + 4
"""Of a group of one output: its weights, its scale and its minimum."""


def has_int4() -> bool:
    """Whether the kernel is there on this machine."""
    return operator(INT4_LINEAR) is not None


def int4_linear(states: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """As :func:`plain_int4_linear`, on packed weights and all of torch's threads.

    Args:
        states: ``[…, in]``, bfloat16 or float32, its last dimension dense.
        packed: of :func:`pack_int4`.
        bias: ``[out]`` in the states' dtype.
        outputs: how many there are before padding.
    """
    product: Tensor = operator(INT4_LINEAR)(states, packed, bias, outputs, torch.get_num_threads())
    return product


def plain_int4_linear(states: Tensor, whole: Tensor, scale: Tensor, minimum: Tensor, bias: Tensor | None) -> Tensor:
    """The reference: pieces of rows rounded to int8 on scales of their own, times ``scale · whole + minimum``.

    Args:
        states: ``[…, in]``; a row that is not finite yields NaN.
        whole: numbers from 0 to 15 ``[out, in]``.
        scale: of each group of an output ``[out, in / 32]``.
        minimum: likewise.
        bias: ``[out]``.
    """
    rounded_pieces = [rounded * step for rounded, step in map(round_piece, pieces(states))]
    weight = widen_int4(whole, scale, minimum).double()
    product: Tensor = (torch.cat(rounded_pieces, -1) @ weight.t()).to(states.dtype)
    return product if bias is None else product + bias


def widen_int4(whole: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """The weights ``[out, in]`` in float32 that numbers from 0 to 15 stand for."""
    groups = whole.view(len(whole), -1, GROUP).float()
    return (groups * scale.float()[..., None] + minimum.float()[..., None]).view(whole.shape)


def round_to_int4(weight: Tensor) -> Tensor:
    """A weight ``[out, in]`` as :func:`round_groups` rounds it and :func:`pack_int4` packs it, by the kernels."""
    plain = weight.detach()
    if plain.dtype not in (torch.float32, torch.bfloat16):
        plain = plain.float()
    packed: Tensor = operator(INT4_PACK)(plain.contiguous(), torch.get_num_threads())
    return packed


def round_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The reference of rounding: of a few ways to write each group the one with the least square error.

    Tried are the ends of its range, as GGUF's Q4_1 has them; the grid of Q4_0; and least squares through what the
    range, cut into about 15 steps, was rounded to. So weights that came from either kind of block stay what they are.

    Args:
        weight: ``[out, in]``.

    Returns:
        Numbers from 0 to 15 ``[out, in]``, scales and minima ``[out, in / 32]`` in float16.
    """
    groups = weight.detach().float().reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    span, farthest = high - low, torch.where(high > -low, high, low)
    tried = [_fit(groups, span / LEVELS, low), _fit(groups, farthest / -8, farthest)]
    tried += [_fit(groups, *_line(groups, low, span, steps)) for steps in CUTS]
    # Of equals the first: the ends as they are.
    chosen = torch.stack([error for *_, error in tried]).argmin(0)
    whole, scale, minimum = (
        torch.stack(each).gather(0, chosen.expand(each[0].shape)[None])[0]
        for each in list(zip(*tried, strict=True))[:3]
    )
    outputs = len(weight)
    return whole.to(torch.uint8).view(outputs, -1), scale.half().view(outputs, -1), minimum.half().view(outputs, -1)


def _fit(groups: Tensor, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers for this scale and minimum, both as they are kept, and the square error."""
    most = torch.finfo(torch.half).max
    scale, minimum = (each.clamp(-most, most).half().float() for each in (scale, minimum))
    above = groups - minimum
    whole = torch.where(scale == 0, 0.0, above / scale).round().nan_to_num().clamp(0, LEVELS)
    return whole, scale, minimum, (above - scale * whole).square().sum(1, keepdim=True)


def _line(groups: Tensor, low: Tensor, span: Tensor, steps: float) -> tuple[Tensor, Tensor]:
    """Scale and minimum by least squares through what a range is rounded to in so many steps."""
    above, clipped = groups - low, max(0.0, steps - LEVELS) / 2
    inverse = torch.where(span > 0, steps / span, 0.0)
    whole = ((above - span * clipped / steps) * inverse).round().clamp(0, LEVELS)
    x, y = whole.sum(1, keepdim=True), above.sum(1, keepdim=True)
    spread = GROUP * whole.square().sum(1, keepdim=True) - x.square()
    scale = torch.where(spread == 0, 0.0, (GROUP * (whole * above).sum(1, keepdim=True) - x * y) / spread)
    return scale, low + (y - scale * x) / GROUP


def pack_int4(whole: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """Weights in the kernel's order, one stream of bytes: ``[⌈out / 32⌉, in / 32, 640]``.

    Of a group of 32 outputs their scales come first, then their minima, both float16, then eight steps of four inputs
    each, the first 16 outputs in the lower halves of 64 bytes and the other 16 in the upper ones.

    Args:
        whole: numbers from 0 to 15 ``[out, in]``.
        scale: of each group of 32 inputs ``[out, in / 32]``.
        minimum: likewise.

    Returns:
        int8 ``[out, 5 / 8 · in]``, padded to whole units: transformers asks the weight of a layer for its dtype.
    """
    missing = -len(whole) % UNIT
    groups = whole.shape[1] // GROUP
    numbers = functional.pad(whole.to(torch.uint8), (0, 0, 0, missing))
    # Unit, half of its outputs, output, group, step, input, in the order of the last line.
    halves = numbers.view(-1, 2, UNIT // 2, groups, _STEPS, 4).permute(1, 0, 3, 4, 2, 5)
    both = (halves[0] | halves[1] << 4).reshape(-1, groups, _STEPS * 2 * UNIT)
    ends = [
        functional.pad(each.half(), (0, 0, 0, missing)).view(-1, UNIT, groups).transpose(1, 2).contiguous()
        for each in (scale, minimum)
    ]
    stream = torch.cat([*(each.view(torch.uint8) for each in ends), both], dim=-1)
    return stream.view(torch.int8).view(len(numbers), groups * _BYTES)


def unpack_int4(packed: Tensor, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, scales and minima that were packed."""
    groups = packed.shape[1] // _BYTES
    stream = packed.view(torch.uint8).view(-1, groups, _BYTES * UNIT)
    scale, minimum = (
        stream[..., begin : begin + 2 * UNIT].contiguous().view(torch.half).transpose(1, 2).reshape(-1, groups)
        for begin in (0, 2 * UNIT)
    )
    both = stream[..., 4 * UNIT :].view(-1, groups, _STEPS, UNIT // 2, 4)
    halves = torch.stack([both & LEVELS, both >> 4], dim=1)
    numbers = halves.permute(0, 1, 4, 2, 3, 5).reshape(-1, groups * GROUP)
    return numbers[:outputs], scale[:outputs], minimum[:outputs]
