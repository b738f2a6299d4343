"""What matters most of logits, by our kernel: numbers against the reference, equals, what is no number."""

from __future__ import annotations

import math

import pytest
import torch

from bild.models.kernels import building, can_sum_up, plain_summary, summary

pytestmark = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")
DTYPES = (torch.float32, torch.bfloat16)


def check(logits):
    places, probability, log_total = summary(logits)
    expected, *numbers = plain_summary(logits.double())
    assert torch.equal(places, expected)
    for found, right in zip((probability, log_total), numbers, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), right, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 47, 64, 79, 100, 8000, 50_257])
@pytest.mark.parametrize("scale", [0.01, 3.0, 60.0])
def test_equals_the_reference(dtype, width, scale):
    # Where nothing stands out many are equal in bfloat16, and the first of them is meant.
    check((torch.randn(2, 3, width) * scale).to(dtype))


@pytest.mark.parametrize("width", [1, 16, 37, 130])
def test_the_highest_is_found_wherever_it_is(width):
    logits = torch.randn(width, width)
    logits.fill_diagonal_(9.0)
    places, *_ = summary(logits)
    assert places.tolist() == list(range(width))


def test_the_first_of_equals():
    logits = torch.zeros(4, 100)
    logits[1, [70, 90]] = logits[2, [33, 34, 99]] = 5.0
    logits[3, 99] = 1e-6
    assert summary(logits)[0].tolist() == [0, 70, 33, 99]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [20, 64, 200])
def test_what_is_no_number_is_told_and_rows_beside_it_are_right(dtype, width):
    logits = torch.randn(6, width).to(dtype)
    logits[0, width - 1] = math.nan
    logits[1, 3] = logits[1, 7] = math.inf
    logits[2] = -math.inf
    logits[3, ::2] = -math.inf
    logits[4, 5], logits[4, 2] = math.nan, math.inf
    check(logits)
    assert summary(logits)[1].isnan().tolist() == [True, True, True, False, True, False]


def test_of_no_rows_there_is_nothing():
    assert [each.shape for each in summary(torch.zeros(0, 2, 50))] == [(0, 2)] * 3


def test_rows_that_lie_apart_are_read_too():
    check(torch.randn(3, 5, 90)[:, ::2, 10:70])


def test_formats_without_a_kernel_are_told():
    assert [can_sum_up(torch.zeros(1, 4, dtype=each)) for each in (*DTYPES, torch.float64, torch.float16)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_many_rows_on_many_threads():
    torch.set_num_threads(2)
    try:
        check(torch.randn(70, 3000))
    finally:
        torch.set_num_threads(1)
