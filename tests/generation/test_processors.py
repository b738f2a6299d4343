"""Score processors that are quicker than transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from bild.generation.processors import TopP, warp_with


@pytest.mark.parametrize("first", [1, 3, 64])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.8, 0.99])
def test_top_p_keeps_what_transformers_keeps(top_p, first):
    torch.manual_seed(0)
    # From one likely token to a nearly even vocabulary, in one batch; some tokens are forbidden.
    scores = torch.randn(40, 700, dtype=torch.float64) * torch.logspace(-2, 1.5, 40).unsqueeze(-1)
    scores[::2, 5:90] = -torch.inf
    unread = torch.empty(0, dtype=torch.long)
    slow, quick = TopPLogitsWarper(top_p, min_tokens_to_keep=2), TopP(top_p, min_tokens_to_keep=2)
    quick.first = first
    expected = slow(unread, scores)
    assert torch.equal(quick(unread, scores), expected)
    assert 1 < expected.isfinite().sum(-1).float().mean() < 700


def test_equal_scores_do_not_widen_the_nucleus():
    kept = TopP(0.5)(torch.empty(0), torch.zeros(1, 200, dtype=torch.float64)).isfinite().sum()
    assert kept == 100


def test_a_chain_uses_it():
    scores = torch.randn(2, 50, dtype=torch.float64)
    chain = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.9)])
    warp = warp_with(chain)
    assert warp is not None and torch.equal(warp(scores), chain(torch.empty(0), scores))
    assert any(isinstance(each, TopP) for each in warp.__closure__[0].cell_contents)
