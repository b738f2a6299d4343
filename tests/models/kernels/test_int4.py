"""Our int4 linear layer: rounding, packing, numbers against the reference, odd shapes, threads, what it refuses."""

from __future__ import annotations

import pytest
import torch

from bild.models.kernels import (
    building,
    int4_linear,
    pack_int4,
    plain_int4_linear,
    round_groups,
    round_to_int4,
    unpack_int4,
    widen_int4,
)
from bild.models.kernels.int8 import PIECE
from bild.models.kernels.operators import INT4_LINEAR, INT4_PACK, operator

needs_kernel = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")


def numbers(outputs: int, inputs: int):
    """Numbers from 0 to 15, and scales and minima of their groups."""
    whole = torch.randint(0, 16, (outputs, inputs), dtype=torch.uint8)
    return whole, (0.05 + torch.rand(outputs, inputs // 32)).half(), torch.randn(outputs, inputs // 32).half()


def near(found, expected) -> None:
    """Equal but for the order in which float32 is summed, and of bfloat16 the last digit."""
    assert found.dtype == expected.dtype
    digit = 2**-7 if found.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, expected, rtol=digit, atol=2e-6 * expected.abs().max().item() + 1e-30)


@pytest.mark.parametrize("outputs", [1, 31, 32, 33, 70])
def test_packing_loses_nothing(outputs):
    layer = numbers(outputs, 96)
    packed = pack_int4(*layer)
    assert packed.shape == (-(-outputs // 32) * 32, 60) and packed.dtype == torch.int8
    assert all(map(torch.equal, unpack_int4(packed, outputs), layer))


def test_a_group_is_one_stream_of_scales_minima_and_halves_of_bytes():
    whole, scale, minimum = numbers(64, 64)
    stream = pack_int4(whole, scale, minimum).view(torch.uint8).view(2, 2, 640)[1, 1]
    assert torch.equal(stream[:64].view(torch.half), scale[32:, 1])
    assert torch.equal(stream[64:128].view(torch.half), minimum[32:, 1])
    # Of the third step the second output of either half.
    step = stream[128 + 2 * 64 + 4 : 128 + 2 * 64 + 8]
    assert (step & 15).tolist() == whole[33, 40:44].tolist() and (step >> 4).tolist() == whole[49, 40:44].tolist()


def test_the_reference_is_the_product_of_rounded_numbers():
    groups = (PIECE + 32) // 32
    whole, scale, minimum = (
        torch.zeros(1, PIECE + 32, dtype=torch.uint8),
        torch.tensor([[2.0] * (groups - 1) + [1.0]]),
        torch.tensor([[0.0] * (groups - 1) + [-3.0]]),
    )
    whole[0, 0], whole[0, PIECE] = 5, 15
    states = torch.zeros(1, PIECE + 32)
    # Steps of 0.5 in the first piece, of 1 in the second, where 2.6 is 3 of them.
    states[0, 0], states[0, PIECE], states[0, PIECE + 1] = 63.5, 127.0, 2.6
    found = plain_int4_linear(states, whole, scale, minimum, torch.tensor([10.0]))
    assert found.tolist() == [[63.5 * 10 + 127 * 12 - 3 * 3 + 10]]


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (1, 64, 40),
        (2, 32, 1),
        (3, 96, 33),
        (7, 160, 130),
        (13, 64, 95),
        (33, 160, 130),
        (64, 256, 256),
        (1, 288, 40),
        (5, 544, 70),
    ],
)
def test_it_comes_near_the_reference(rows, inputs, outputs, with_bias, dtype):
    layer, bias = numbers(outputs, inputs), torch.randn(outputs).to(dtype) if with_bias else None
    states = (torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    found, expected = int4_linear(states, pack_int4(*layer), bias, outputs), plain_int4_linear(states, *layer, bias)
    for one, other in zip(found, expected, strict=True):
        near(one, other)


@needs_kernel
def test_a_row_has_the_same_numbers_among_any_others():
    layer, states = numbers(96, 64), torch.randn(33, 64)
    packed = pack_int4(*layer)
    alone = torch.cat([int4_linear(row[None], packed, None, 96) for row in states])
    for rows in range(1, 34):
        assert torch.equal(int4_linear(states[:rows], packed, None, 96), alone[:rows])


@needs_kernel
def test_threads_share_the_outputs_and_change_no_number():
    layer, states = pack_int4(*numbers(1000, 512)), torch.randn(9, 512)
    alone = operator(INT4_LINEAR)(states, layer, None, 1000, 1)
    for threads in (2, 3):
        for _ in range(20):
            assert torch.equal(operator(INT4_LINEAR)(states, layer, None, 1000, threads), alone)


@needs_kernel
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_a_row_that_is_not_finite_yields_nan_and_no_other_row_notices(bad):
    layer, states, bias = pack_int4(*numbers(40, 64)), torch.randn(3, 64), torch.randn(40)
    expected = int4_linear(states, layer, bias, 40)
    states[1, 5] = bad
    found = int4_linear(states, layer, bias, 40)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@needs_kernel
def test_any_number_of_dimensions_and_rows_apart_in_memory():
    layer, wide = numbers(40, 64), torch.randn(3, 5, 128)
    for states in (wide[..., :64], wide.transpose(0, 1)[..., 64:], wide[0, 0, :64], wide[:0, :, :64]):
        found = int4_linear(states, pack_int4(*layer), None, 40)
        assert found.shape == (*states.shape[:-1], 40) and found.is_contiguous()
        if states.numel():
            near(found, plain_int4_linear(states, *layer, None))


@needs_kernel
@pytest.mark.parametrize(
    ("states", "weight", "bias"),
    [
        (torch.zeros(1, 96), torch.zeros(64, 40, dtype=torch.int8), None),
        (torch.zeros(1, 64, dtype=torch.float64), torch.zeros(64, 40, dtype=torch.int8), None),
        (torch.zeros(1, 64), torch.zeros(64, 40), None),
        (torch.zeros(1, 64), torch.zeros(64, 64, dtype=torch.int8), None),
        (torch.zeros(1, 64), torch.zeros(64, 40, dtype=torch.int8), torch.zeros(39)),
    ],
)
def test_what_does_not_fit_is_refused_and_not_read(states, weight, bias):
    with pytest.raises(RuntimeError):
        operator(INT4_LINEAR)(states, weight, bias, 40, 1)


@needs_kernel
@pytest.mark.parametrize(
    "weight", [torch.zeros(32), torch.zeros(4, 48), torch.zeros(4, 32).half(), torch.zeros(32, 4).t()]
)
def test_what_cannot_be_packed_is_refused(weight):
    with pytest.raises(RuntimeError):
        operator(INT4_PACK)(weight, 1)


def error_of(weight, layer) -> float:
    """Share of the weight's norm by which what was made of it is off."""
    return float((widen_int4(*layer) - weight.float()).norm() / weight.float().norm())


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 32), (40, 96), (70, 64)])
def test_weights_are_rounded_as_the_reference_does(outputs, inputs, dtype):
    weight = (torch.randn(outputs, inputs) * torch.logspace(-3, 1, outputs)[:, None]).to(dtype)
    packed, expected = round_to_int4(weight), pack_int4(*round_groups(weight))
    assert packed.shape == expected.shape
    # What is summed in another order may break a tie otherwise.
    assert (packed != expected).float().mean() < 0.01
    torch.testing.assert_close(
        error_of(weight, unpack_int4(packed, outputs)), error_of(weight, round_groups(weight)), rtol=1e-3, atol=1e-6
    )


@needs_kernel
def test_threads_round_alike():
    weight = torch.randn(300, 256)
    assert torch.equal(operator(INT4_PACK)(weight, 1), operator(INT4_PACK)(weight, 2))


def test_searching_is_better_than_the_ends_of_the_range():
    weight = torch.randn(64, 256)
    groups = weight.view(-1, 32)
    low = groups.amin(1, keepdim=True)
    step = (groups.amax(1, keepdim=True) - low) / 15
    plain = ((groups - low) / step).round() * step + low
    assert error_of(weight, round_groups(weight)) < 0.92 * float((plain - groups).norm() / groups.norm())


def blocks(kind: str):
    """Weights as llama.cpp's blocks hold them: the largest magnitude is -8 steps, or both ends are used."""
    whole = torch.randint(0, 16, (64, 64), dtype=torch.uint8)
    # Not all of its blocks use all of their numbers.
    whole[:, ::32], whole[:, 1::32] = 0, torch.randint(13, 16, (64, 2), dtype=torch.uint8)
    scale = (0.01 * torch.randn(64, 2)).half()
    return whole, scale, (-8 * scale.float()).half() if kind == "Q4_0" else torch.randn(64, 2).mul(0.1).half()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_blocks_of_gguf_stay_what_they_are(kind):
    whole, scale, minimum = blocks(kind)
    scale = scale if kind == "Q4_0" else scale.abs()
    weight = widen_int4(whole, scale, minimum)
    assert error_of(weight, round_groups(weight)) < 1e-4
    # In bfloat16 the numbers are the same still; what is off is what that format has lost.
    narrow = weight.bfloat16()
    assert error_of(narrow, round_groups(narrow)) < 2e-3
    if building.is_supported():
        assert error_of(weight, unpack_int4(round_to_int4(weight), 64)) < 1e-4


@pytest.mark.parametrize("value", [0.0, 2.5, -1e-9, 65504.0])
def test_a_group_of_one_value_is_that_value(value):
    weight = torch.full((3, 32), value)
    expected = weight.half().float()
    assert torch.equal(widen_int4(*round_groups(weight)), expected)
    if building.is_supported():
        assert torch.equal(widen_int4(*unpack_int4(round_to_int4(weight), 3)), expected)
