"""Which kernel a layer runs on: wrong numbers are out, the faster one is in, and the answer stays."""

from __future__ import annotations

import json
import time

import pytest
import torch

from bild.models.int8 import quantize_rows
from bild.models.kernels import building, choosing, int8, is_faster_here, plain_int8_linear

needs_kernel = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")


@pytest.fixture
def choices(tmp_path, monkeypatch):
    """The file of a machine that has measured nothing yet."""
    file = tmp_path / "choices.json"
    monkeypatch.setattr(choosing, "choices_file", lambda: file)
    monkeypatch.setattr(choosing, "TURNS", 3)
    return file


@pytest.fixture
def layer():
    return quantize_rows(torch.randn(96, 64), int8.MOST)


def right(states, weight, scale):
    return plain_int8_linear(states, weight, scale, None)


def at_these_times(monkeypatch, *pairs):
    left = list(pairs)
    monkeypatch.setattr(choosing, "_times", lambda kernels, states: left.pop(0))


@needs_kernel
@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(1, 2), (1, 2), (1, 2)], True),
        ([(2, 1), (2, 1), (2, 1)], False),
        # Four times as fast at one row outweighs twice as slow at 32; the other way round it does not.
        ([(1, 4), (1, 1), (2, 1)], True),
        ([(4, 1), (1, 1), (1, 2)], False),
    ],
)
def test_the_kernel_whose_times_have_the_lower_product_is_chosen(pairs, expected, layer, choices, monkeypatch):
    at_these_times(monkeypatch, *pairs)
    assert is_faster_here(*layer, right) is expected


@needs_kernel
def test_a_shape_is_measured_once_and_its_times_are_kept(layer, choices, monkeypatch):
    at_these_times(monkeypatch, (1e-6, 2e-6), (3e-6, 4e-6), (5e-6, 6e-6))
    assert is_faster_here(*layer, right)
    # No times are left, so a second measurement would fail.
    assert is_faster_here(*layer, right)
    ((name, kept),) = json.loads(choices.read_text()).items()
    assert name == f"64->96 int8 float32, {torch.get_num_threads()} threads"
    assert kept == {"ours": True, "rows": [1, 8, 32], "us": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}


@needs_kernel
@pytest.mark.parametrize("content", ["", "[]", "nonsense", '{"64->96 int8 float32, 1 threads": 3}'])
def test_a_damaged_file_is_measured_anew(content, layer, choices):
    choices.write_text(content)
    assert is_faster_here(*layer, right) in (True, False)
    assert "ours" in json.loads(choices.read_text())[f"64->96 int8 float32, {torch.get_num_threads()} threads"]


@needs_kernel
@pytest.mark.parametrize("wrong", [torch.nan, 0.0, 1.1])
def test_a_kernel_with_wrong_numbers_is_out_before_it_is_timed(wrong, layer, choices, monkeypatch, caplog):
    at_these_times(monkeypatch)
    assert is_faster_here(*layer, lambda states, *rest: right(states, *rest) * wrong)
    assert "torch's" in caplog.text
    choices.unlink()
    monkeypatch.setattr(int8, "int8_linear", lambda states, *rest: right(states, *layer) * wrong)
    assert not is_faster_here(*layer, right)
    assert "bild's" in caplog.text


def test_what_does_not_fit_is_not_measured(choices):
    weight, scale = quantize_rows(torch.randn(8, 48))
    assert not is_faster_here(weight, scale, right)
    weight, scale = quantize_rows(torch.randn(8, 64, dtype=torch.float64))
    assert not is_faster_here(weight, scale, right)
    assert not choices.exists()


@needs_kernel
def test_on_this_machine_the_measurement_is_a_real_one(choices):
    weight, scale = quantize_rows(torch.randn(768, 256).bfloat16(), int8.MOST)
    is_faster_here(weight, scale, torch.ops.aten._weight_int8pack_mm)
    (kept,) = json.loads(choices.read_text()).values()
    assert all(0 < microseconds < 1e5 for pair in kept["us"] for microseconds in pair)


def test_a_busy_moment_does_not_decide():
    calls = []

    def disturbed(states):
        calls.append(states)
        # All of one round.
        time.sleep(0.02 if len(calls) <= 1 + choosing.TURNS else 0.001)

    ours, theirs = choosing._times([disturbed, lambda states: time.sleep(0.004)], torch.zeros(1))
    assert 0.001 <= ours < 0.004 <= theirs


@needs_kernel
def test_a_choice_that_cannot_be_kept_is_still_made(layer, tmp_path, monkeypatch):
    """The kernels may have been loaded from another folder, and the present one may not be writable."""
    monkeypatch.setattr(choosing, "choices_file", lambda: tmp_path / "new" / "choices.json")
    at_these_times(monkeypatch, (1, 2), (1, 2), (1, 2), (1, 2), (1, 2), (1, 2))
    assert is_faster_here(*layer, right)
    assert (tmp_path / "new" / "choices.json").is_file()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(choosing, "choices_file", lambda: tmp_path / "file" / "choices.json")
    assert is_faster_here(*layer, right)


@needs_kernel
def test_kernels_that_are_there_are_not_loaded_again_from_another_folder(tmp_path, monkeypatch):
    assert building.is_loaded()
    monkeypatch.setenv("BILD_CACHE", str(tmp_path))
    assert building.is_loaded.__wrapped__()
    assert not list(tmp_path.iterdir())
