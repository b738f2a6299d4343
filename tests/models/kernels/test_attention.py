"""Attention by our kernel: numbers against the reference, masks, shared heads, odd strides, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from bild.models.kernels import building, replace_attention
from bild.models.kernels.attention import attention, plain_attention
from bild.models.kernels.operators import ATTENTION, operator

pytestmark = pytest.mark.skipif(not building.is_supported(), reason="this processor lacks the instructions")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}


def heads(rows, count, tokens, width, dtype=torch.float32):
    """``[rows, count, tokens, width]`` as networks make them: tokens before heads in memory."""
    return torch.randn(rows, tokens, count, width).to(dtype).transpose(1, 2)


def off(found, queries, keys, values, mask, scale):
    wide = mask if mask is None or mask.dtype == torch.bool else mask.double()
    expected = plain_attention(queries.double(), keys.double(), values.double(), wide, scale)
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("width", [16, 48, 64, 80, 128, 256])
@pytest.mark.parametrize(("rows", "count", "shared", "tokens", "columns"), [
    (1, 4, 4, 1, 32), (3, 4, 2, 5, 40), (2, 6, 1, 7, 17), (1, 2, 2, 11, 300), (4, 3, 3, 2, 1),
    (2, 4, 2, 70, 90), (1, 2, 1, 131, 200),
])  # fmt: skip
def test_equals_the_reference(dtype, width, rows, count, shared, tokens, columns):
    queries = heads(rows, count, tokens, width, dtype)
    keys, values = (heads(rows, shared, columns, width, dtype) for _ in range(2))
    added = torch.randn(rows, count, tokens, columns).to(dtype)
    seen = torch.rand(rows, 1, tokens, columns) > 0.4
    seen[..., 0] = True
    forbidden = added.masked_fill(~seen, torch.finfo(dtype).min)
    for mask in (None, added, added[:1, :1, :1], seen, seen[:1], forbidden, forbidden.float()):
        found = attention(queries, keys, values, mask, 0.3)
        assert found.shape == queries.shape and found.dtype == dtype
        assert off(found, queries, keys, values, mask, 0.3) < TOLERANCE[dtype]


def test_the_result_lies_as_the_product_behind_it_reads_it():
    found = attention(heads(2, 3, 5, 16), heads(2, 3, 9, 16), heads(2, 3, 9, 16), None, 1.0)
    assert found.transpose(1, 2).is_contiguous()


def test_what_no_query_sees_may_be_anything():
    queries, keys, values = heads(1, 2, 5, 32), heads(1, 2, 20, 32), heads(1, 2, 20, 32)
    mask = torch.ones(1, 1, 5, 20, dtype=torch.bool)
    mask[..., 12:] = False
    expected = attention(queries, keys, values, mask, 1.0)
    keys[..., 12:, :], values[..., 12:, :] = math.nan, math.inf
    assert torch.equal(attention(queries, keys, values, mask, 1.0), expected)


def test_a_query_that_sees_nothing_is_zero_and_its_neighbours_are_right():
    queries, keys, values = heads(1, 2, 5, 32), heads(1, 2, 20, 32), heads(1, 2, 20, 32)
    mask = torch.rand(1, 1, 5, 20) > 0.3
    expected = attention(queries, keys, values, mask, 1.0)
    mask[:, :, 2] = False
    found = attention(queries, keys, values, mask, 1.0)
    assert not found[:, :, 2].any()
    assert torch.equal(found[:, :, [0, 1, 3, 4]], expected[:, :, [0, 1, 3, 4]])


def test_many_queries_are_as_right_as_few():
    queries, keys, values = heads(2, 4, 100, 64), heads(2, 2, 150, 64), heads(2, 2, 150, 64)
    mask = torch.ones(100, 150, dtype=torch.bool).tril(30)[None, None]
    mask = mask & (torch.rand(2, 1, 100, 150) > 0.1)
    mask[:, :, 7] = False
    places = torch.tensor([1, 0])
    found = attention(queries, keys, values, mask, 0.2, places)
    pieces = [
        attention(queries[:, :, at : at + 20], keys, values, mask[:, :, at : at + 20], 0.2, places)
        for at in range(0, 100, 20)
    ]
    torch.testing.assert_close(found, torch.cat(pieces, 2), rtol=1e-4, atol=2e-6)
    assert not found[:, :, 7].any()
    # What a query does not see may be anything, and what it sees stays what it is.
    broken = keys.clone()
    broken[:, :, 131:] = math.nan
    assert torch.equal(attention(queries, broken, values, mask, 0.2, places), found)
    broken[0, 0, 90] = math.nan
    hurt = attention(queries, broken, values, mask, 0.2, places).isnan().all(-1)
    assert torch.equal(hurt[1, :2], mask[1, :, :, 90].expand(2, 100)) and hurt.sum() == hurt[1, :2].sum() > 0


def test_a_nan_that_is_seen_stays_one_and_in_its_row():
    queries, keys, values = heads(2, 2, 4, 32), heads(2, 2, 20, 32), heads(2, 2, 20, 32)
    expected = attention(queries, keys, values, None, 1.0)
    keys[1, 0, 7, 3] = math.nan
    found = attention(queries, keys, values, None, 1.0)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1, 1], expected[1, 1])
    assert found[1, 0].isnan().all()


@pytest.mark.parametrize("broken", ["query", "keys"])
def test_where_every_score_is_a_nan_the_result_is_one(broken):
    queries, keys, values = heads(2, 2, 4, 32), heads(2, 2, 20, 32), heads(2, 2, 20, 32)
    expected = attention(queries, keys, values, None, 1.0)
    (queries if broken == "query" else keys)[1, 0] = math.nan
    found = attention(queries, keys, values, None, 1.0)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1, 1], expected[1, 1])
    assert found[1, 0].isnan().all()


def test_large_scores_do_not_overflow():
    queries, keys, values = 100 * heads(1, 1, 3, 64), 100 * heads(1, 1, 9, 64), heads(1, 1, 9, 64)
    found = attention(queries, keys, values, None, 1.0)
    best = (queries @ keys.transpose(-1, -2)).argmax(-1)
    torch.testing.assert_close(found[0, 0], values[0, 0, best[0, 0]])


def test_threads_change_no_number():
    inputs = (heads(4, 8, 6, 64), heads(4, 2, 500, 64), heads(4, 2, 500, 64), None, None, 0.125)
    one, two = (operator(ATTENTION)(*inputs, threads) for threads in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("change", "says"), [
    ({"keys": heads(1, 3, 9, 32)}, "do not fit"),
    ({"values": heads(1, 2, 8, 32)}, "do not fit"),
    ({"keys": heads(1, 2, 9, 32).double()}, "all alike"),
    ({"mask": torch.ones(1, 1, 5, 8, dtype=torch.bool)}, "mask does not fit"),
    ({"mask": torch.ones(1, 1, 5, 9, dtype=torch.int32)}, "bool, bfloat16 or float32"),
    ({"queries": heads(1, 2, 5, 24), "keys": heads(1, 2, 9, 24), "values": heads(1, 2, 9, 24)}, "heads of 16"),
    ({"keys": heads(1, 2, 32, 9).transpose(-1, -2)}, "dense"),
])  # fmt: skip
def test_refuses_what_it_cannot_read(change, says):
    given = {"queries": heads(1, 2, 5, 32), "keys": heads(1, 2, 9, 32), "values": heads(1, 2, 9, 32), "mask": None}
    with pytest.raises(RuntimeError, match=says):
        attention(**(given | change), scale=1.0)


def test_rows_may_read_other_places_and_share_them():
    places = torch.tensor([3, 0, 3, 1, 4])
    queries, keys, values = heads(5, 4, 3, 32), heads(6, 2, 20, 32), heads(6, 2, 20, 32)
    mask = torch.rand(5, 1, 3, 20) > 0.3
    found = attention(queries, keys, values, mask, 0.5, places)
    expected = attention(queries, keys[places], values[places], mask, 0.5)
    assert torch.equal(found, expected)
    apart = torch.stack([places, -places], 1)[:, 0]
    assert torch.equal(attention(queries, keys, values, mask, 0.5, apart), expected)


@pytest.mark.parametrize(("places", "says"), [
    (torch.tensor([0, 6]), "not there"), (torch.tensor([-1, 0]), "not there"), (torch.tensor([0]), "one place a row"),
    (torch.tensor([0, 1], dtype=torch.int32), "in int64"),
])  # fmt: skip
def test_places_that_are_none_are_refused(places, says):
    with pytest.raises(RuntimeError, match=says):
        attention(heads(2, 2, 3, 32), heads(6, 2, 9, 32), heads(6, 2, 9, 32), None, 1.0, places)


class Repeating(nn.Module):
    """Attention whose keys and values are repeated for every head, as transformers writes it."""

    def __init__(self, repeats: int, causal: bool = False) -> None:
        super().__init__()
        self.repeats, self.causal = repeats, causal

    def forward(self, queries, keys, values, mask):
        rows, count, columns, width = keys.shape
        shape = (rows, count, self.repeats, columns, width)
        keys, values = (
            each[:, :, None].expand(shape).reshape(rows, count * self.repeats, columns, width)
            for each in (keys, values)
        )
        return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=self.causal)


def test_a_graph_attends_by_our_kernel_to_keys_that_are_not_repeated():
    inputs = (heads(2, 6, 4, 32), heads(2, 2, 9, 32), heads(2, 2, 9, 32), torch.rand(2, 1, 4, 9) > 0.2)
    program = torch.export.export(Repeating(3), inputs)
    expected = program.module()(*inputs)
    assert replace_attention(program.graph) == 1
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    targets = [node.target for node in program.graph.nodes]
    assert operator(ATTENTION) in targets and torch.ops.aten.expand.default not in targets
    torch.testing.assert_close(program.module()(*inputs), expected)


def test_attention_that_looks_back_by_itself_stays_torchs():
    inputs = (heads(1, 2, 9, 32), heads(1, 2, 9, 32), heads(1, 2, 9, 32))
    program = torch.export.export(Repeating(1, causal=True), (*inputs, None))
    assert replace_attention(program.graph) == 0
