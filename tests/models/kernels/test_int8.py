"""Our int8 linear layer: packing, numbers against the reference, odd shapes, threads, what it refuses."""

from __future__ import annotations

import threading

import pytest
import torch

from bild.models.int8 import Int8Linear, quantize_rows
from bild.models.kernels import building, fits, int8, int8_linear, pack, pad_scale, plain_int8_linear, unpack
from bild.models.kernels.int8 import AHEAD_OF_PIECE, MOST, PIECE, SHIFT, SINGLE, STEPS, TOKEN_SHIFT
from bild.models.kernels.operators import INT8_ORDER, LINEAR, operator

OF_PAIRS = 64
"""The largest weight where steps go in pairs."""
needs_kernel = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")


def layer(inputs: int, outputs: int, dtype: torch.dtype = torch.float32):
    weight, scale = quantize_rows(torch.randn(outputs, inputs, dtype=dtype), MOST)
    return weight, scale, torch.randn(outputs).to(dtype)


def any_weight(outputs: int, inputs: int):
    return torch.randint(-MOST, MOST + 1, (outputs, inputs), dtype=torch.int8)


def ours(states, weight, scale, bias):
    return int8_linear(states, pack(weight), pad_scale(scale), bias, weight.shape[0])


def steps_of(weight):
    """Of each unit what the weights of a step's twos of inputs are together, those above zero and those below,
    ``[units, in / 4, 128]``."""
    signed = torch.stack([weight.int().clamp(min=0), -weight.int().clamp(max=0)])
    twos = signed.view(2, -1, 32, weight.shape[1] // 4, 2, 2).sum(-1)
    return twos.permute(1, 3, 0, 2, 4).flatten(2)


@needs_kernel
@pytest.mark.parametrize("inputs", [64, 256, 544])
@pytest.mark.parametrize("outputs", [1, 31, 32, 33, 70])
def test_packing_loses_nothing(outputs, inputs):
    for weight in (layer(inputs, outputs)[0], any_weight(outputs, inputs)):
        packed = pack(weight)
        assert len(packed) == -(-outputs // 32) * 32 and packed.dtype == torch.int8
        assert torch.equal(unpack(packed, outputs), weight)


@pytest.mark.skipif(not int8.HAS_VNNI, reason="AVX2 reads the steps in another order")
def test_with_vnni_four_inputs_of_32_outputs_are_together():
    weight = any_weight(70, 64)
    stored = (weight[0, 12:16].int() + SHIFT) % 256
    assert pack(weight).view(torch.uint8).view(-1, 16, 32, 4)[0, 3, 0].tolist() == stored.tolist()


@needs_kernel
@pytest.mark.skipif(int8.HAS_VNNI, reason="VNNI reads the steps as they are")
def test_without_vnni_their_order_and_what_outputs_owe_stand_in_front_of_the_steps_of_a_piece():
    weight = layer(PIECE + 32, 64)[0]
    order, stream = int8._order(weight), pack(weight).view(torch.uint8).view(2, -1)
    assert torch.equal(stream[:, :STEPS], order[:, :STEPS])
    last = stream[1, AHEAD_OF_PIECE + PIECE * 32 :]
    owed = -TOKEN_SHIFT * weight[32:].int().split(PIECE, 1)[1].sum(1)
    assert torch.equal(last[STEPS:AHEAD_OF_PIECE].view(torch.int32), owed.to(torch.int32))
    assert last[:8].tolist() == order[1, STEPS:].tolist() and not last[8:STEPS].any()
    # The third step of the last piece, of its second output.
    inputs = PIECE + 4 * (last[2].item() % SINGLE)
    begin = AHEAD_OF_PIECE + 2 * 128 + 4
    assert last[begin : begin + 4].view(torch.int8).tolist() == weight[33, inputs : inputs + 4].tolist()


@needs_kernel
@pytest.mark.parametrize("inputs", [32, 256, 544])
@pytest.mark.parametrize("spread", [0.0, 0.6, 3.0])
def test_two_steps_are_a_pair_where_no_sum_leaves_16_bits_and_those_left_fit_no_other(inputs, spread):
    """A spread of 0 makes all weights of a row as large, one of 3 leaves a few that are large."""
    weight = quantize_rows(torch.randn(64, inputs).sign() * (spread * torch.randn(64, inputs)).exp(), OF_PAIRS)[0]
    for unit, order in zip(steps_of(weight), int8._order(weight), strict=True):
        for steps, places in zip(unit.split(STEPS), order.split(STEPS), strict=True):
            assert sorted((places % SINGLE).tolist()) == list(range(len(steps)))
            pairs, single = places[places < SINGLE].long(), places[places >= SINGLE].long() - SINGLE
            assert (places[: len(pairs)] < SINGLE).all()
            assert (steps[pairs[::2]] + steps[pairs[1::2]] <= 128).all()
            meet = (steps[single][:, None] + steps[single]).amax(-1) <= 128
            assert not meet[~torch.eye(len(single), dtype=torch.bool)].any()


@needs_kernel
def test_nearly_all_steps_of_normal_weights_go_in_pairs():
    for inputs in (256, 1024):
        weight = quantize_rows(torch.randn(1024, inputs), OF_PAIRS)[0]
        assert (int8._order(weight) >= SINGLE).float().mean() < 0.003


@needs_kernel
@pytest.mark.parametrize(("small", "alone"), [(0, False), (1, True)])
@pytest.mark.parametrize("rows", range(1, 11))
def test_sums_that_just_fit_16_bits_are_exact_and_larger_ones_are_not_made(small, alone, rows):
    sign = torch.randint(0, 2, (96, PIECE), dtype=torch.int8) * 2 - 1
    # The largest sums there are: of each unit all weights of one output are above zero, and of another below.
    sign[::32], sign[1::32] = 1, -1
    weight = sign * torch.tensor([OF_PAIRS, small], dtype=torch.int8).repeat(PIECE // 2)
    assert ((int8._order(weight) >= SINGLE) == alone).all()
    states = 127.0 * sign[:rows] * (-1) ** torch.arange(rows)[:, None]
    states[-1] = 127.0
    found = ours(states, weight, torch.ones(96), None)
    assert torch.equal(found, states @ weight.float().t())
    most = 127 * (OF_PAIRS + small) * PIECE // 2
    assert found[-1, :2].tolist() == [most, -most]


@needs_kernel
@pytest.mark.parametrize("too_large", [-MOST - 1, min(MOST + 1, 127)])
def test_a_weight_that_is_too_large_is_refused(too_large):
    weight = torch.zeros(32, 32, dtype=torch.int8)
    weight[3, 4] = too_large
    if abs(too_large) > MOST:
        with pytest.raises(ValueError, match=f"is beyond {MOST}"):
            pack(weight)
    else:
        assert torch.equal(unpack(pack(weight), 32), weight)


@needs_kernel
@pytest.mark.parametrize("weight", [torch.ones(33, 64), torch.ones(33, 64).char(), torch.ones(32, 36).char()])
def test_only_whole_units_and_inputs_have_an_order(weight):
    with pytest.raises(RuntimeError):
        operator(INT8_ORDER)(weight, 1)


def test_the_reference_is_the_product_of_rounded_numbers():
    weight = torch.tensor([[127, -2], [0, 1]], dtype=torch.int8)
    # Steps of 1 and 0.5: the second row is 127 and 1.5 steps, which round to 127 and 2.
    states = torch.tensor([[127.0, 3.4], [63.5, 0.75]])
    found = plain_int8_linear(states, weight, torch.tensor([1.0, 0.5]), torch.tensor([0.0, 10.0]))
    assert found.tolist() == [[127 * 127 - 6, 1.5 + 10], [0.5 * (127 * 127 - 4), 0.5 * 2 * 0.5 + 10]]


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        *((1, 64, 40), (2, 32, 1), (3, 96, 33), (6, 32, 64), (7, 160, 130), (12, 64, 95), (13, 64, 32)),
        *((35, 160, 130), (64, 256, 256), (200, 64, 100), (1, 288, 40), (5, 544, 130), (13, 576, 33)),
        # One tile of rows, two, and one beside two, the last of them not full; two units of outputs and one.
        *((8, 320, 33), (16, 64, 96), (17, 320, 130), (33, 512, 64), (241, 64, 40)),
    ],
)
def test_it_is_the_reference_to_the_last_digit(rows, inputs, outputs, with_bias, dtype):
    weight, scale, bias = layer(inputs, outputs, dtype)
    states = (torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    added = bias if with_bias else None
    found = ours(states, weight, scale, added)
    assert found.dtype == dtype
    assert torch.equal(found, plain_int8_linear(states, weight, scale, added))


@needs_kernel
@pytest.mark.parametrize("inputs", [32, 64])
@pytest.mark.parametrize("rows", [*range(1, 27), 63, 64, 65])
def test_every_number_of_rows_has_a_way_through_the_registers(rows, inputs):
    weight, scale, _ = layer(inputs, 96)
    states = torch.randn(rows, inputs)
    assert torch.equal(ours(states, weight, scale, None), plain_int8_linear(states, weight, scale, None))


@needs_kernel
def test_the_largest_sums_are_exact():
    weight = torch.full((3, 1 << 16), MOST, dtype=torch.int8)
    weight[1] = -MOST
    states = torch.ones(2, 1 << 16)
    states[1] = -1
    # Summed in float32, piece by piece: exact where all of it, in steps of 1, fits 24 bits.
    found = ours(127 * states[:, : 4 * PIECE], weight[:, : 4 * PIECE], torch.ones(3), None)
    expected = 127.0 * MOST * 4 * PIECE
    assert found.tolist() == [[expected, -expected, expected], [-expected, expected, -expected]]
    assert torch.allclose(ours(states, weight, torch.ones(3), None), found * (1 << 16) / (127 * 4 * PIECE), rtol=1e-5)


@needs_kernel
def test_a_large_number_costs_only_its_own_piece_its_last_bits():
    states, weight = torch.full((1, 2 * PIECE), 0.25), torch.zeros(2, 2 * PIECE, dtype=torch.int8)
    states[0, 3], weight[0, 0], weight[1, PIECE] = 1000.0, 1, 1
    # In the piece of the large number 0.25 is less than half a step of 1000 / 127.
    assert ours(states, weight, torch.ones(2), None).tolist() == [[0.0, 0.25]]


@needs_kernel
def test_threads_share_the_outputs_and_change_no_number():
    weight, scale, bias = layer(512, 1000)
    states = torch.randn(9, 512)
    alone = ours(states, weight, scale, bias)
    for threads in (2, 3, 7):
        for _ in range(50):
            shared = operator(LINEAR)(states, pack(weight), pad_scale(scale), bias, 1000, threads)
            assert torch.equal(shared, alone)


@needs_kernel
def test_callers_at_the_same_time_do_not_disturb_each_other():
    layers = [layer(512, 1000) for _ in range(3)]
    states, wrong = torch.randn(9, 512), []

    def call(weight, scale, bias):
        packed, padded, expected = pack(weight), pad_scale(scale), plain_int8_linear(states, weight, scale, bias)
        for _ in range(100):
            found = operator(LINEAR)(states, packed, padded, bias, 1000, 2)
            if not torch.equal(found, expected):
                wrong.append(found)

    callers = [threading.Thread(target=call, args=each) for each in layers]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert not wrong


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_yields_nan_and_no_other_row_notices(bad, dtype):
    weight, scale, bias = layer(64, 40, dtype)
    states = torch.randn(3, 64).to(dtype)
    expected = ours(states, weight, scale, bias)
    states[1, 5] = bad
    found = ours(states, weight, scale, bias)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@needs_kernel
def test_rows_of_zeros_and_of_the_smallest_numbers_are_not_nan():
    weight, scale, bias = layer(32, 8)
    states = torch.stack([torch.zeros(32), torch.full((32,), 1e-44), torch.full((32,), 3e38)])
    found = ours(states, weight, scale, bias)
    assert torch.equal(found[0], bias) and not found[:2].isnan().any()


@needs_kernel
def test_any_number_of_dimensions_and_rows_apart_in_memory():
    weight, scale, _ = layer(64, 40)
    wide = torch.randn(3, 5, 128)
    for states in (
        wide[..., :64],
        wide[:, -1:, 64:],
        wide.transpose(0, 1)[..., :64],
        wide[0, 0, :64],
        wide[:0, :, :64],
    ):
        found = ours(states, weight, scale, None)
        assert found.shape == (*states.shape[:-1], 40) and found.is_contiguous()
        assert torch.equal(found, plain_int8_linear(states.contiguous(), weight, scale, None))


@needs_kernel
@pytest.mark.parametrize(
    ("states", "scale"),
    [
        (torch.zeros(1, 96), torch.ones(64)),
        (torch.zeros(1, 64, dtype=torch.float64), torch.ones(64)),
        (torch.zeros(64, 1).t().expand(2, 64).t(), torch.ones(64)),
        (torch.zeros(1, 64), torch.ones(64, dtype=torch.bfloat16)),
        (torch.zeros(1, 64), torch.ones(40)),
    ],
)
def test_what_does_not_fit_is_refused_and_not_read(states, scale):
    with pytest.raises(RuntimeError):
        operator(LINEAR)(states, pack(torch.ones(40, 64, dtype=torch.int8)), scale, None, 40, 1)


@needs_kernel
@pytest.mark.parametrize("bias", [torch.ones(39), torch.ones(40, dtype=torch.bfloat16)])
def test_a_bias_of_another_size_or_format_is_refused(bias):
    weight, scale, _ = layer(64, 40)
    with pytest.raises(RuntimeError):
        ours(torch.zeros(1, 64), weight, scale, bias)


def test_only_whole_units_on_the_cpu_fit():
    cpu = torch.device("cpu")
    assert fits(32, 32, torch.bfloat16, cpu) and fits(8000, 1 << 16, torch.float32, cpu)
    assert not fits(32, 48, torch.bfloat16, cpu) and not fits(32, 0, torch.float32, cpu)
    assert not fits(40, 32, torch.bfloat16, cpu)
    assert not fits(32, 32, torch.float16, cpu) and not fits(32, 32, torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("own", [pytest.param(True, marks=needs_kernel), False])
def test_a_layers_weight_has_the_rows_and_the_dtype_transformers_asks_for(own):
    # Packed as bytes of another shape, T5 turned its states into bytes and its head had 250 tokens.
    weight = Int8Linear(torch.randn(96, 64), None, own_kernel=own).weight
    assert len(weight) == 96 and weight.dtype == torch.int8


@needs_kernel
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_on_our_kernel_multiplies_as_one_that_rounds_tokens(bias):
    linear = torch.nn.Linear(64, 40, bias=bias).requires_grad_(False)
    replaced = Int8Linear(linear.weight, linear.bias, own_kernel=True)
    states = torch.randn(2, 3, 64)
    weight, scale = quantize_rows(linear.weight, MOST)
    assert torch.equal(replaced(states), plain_int8_linear(states, weight, scale, linear.bias))
    assert 0 < (replaced(states) - linear(states)).norm() / linear(states).norm() < 0.03
    assert torch.equal(unpack(replaced.weight, 40), weight)


@needs_kernel
def test_a_layer_converted_to_another_format_still_reads_its_scale_right():
    linear = torch.nn.Linear(64, 40).requires_grad_(False)
    replaced = Int8Linear(linear.weight, linear.bias, own_kernel=True).to(torch.bfloat16)
    states = torch.randn(3, 64)
    found = replaced(states.bfloat16()).float()
    assert (found - linear(states)).norm() / linear(states).norm() < 0.03
