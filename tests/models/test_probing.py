"""What tells a wrong computation from rounding."""

from __future__ import annotations

import pytest
import torch

from bild.models.probing import difference, nudged
from tests.networks import build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_embedded_one_rounding_apart_and_as_before_afterwards(dtype):
    network = build("llama", dtype=dtype)
    embed, ids = network.get_input_embeddings(), torch.tensor([[5, 9, 3]])
    with torch.inference_mode():
        before, scores = embed(ids), network(ids).logits
        with nudged(network):
            during, others = embed(ids), network(ids).logits
        assert torch.equal(embed(ids), before) and torch.equal(network(ids).logits, scores)
    steps = (during - before).abs() / before.abs().clamp(min=1e-30)
    assert (
        during.dtype == dtype and steps.max() <= 2 * torch.finfo(dtype).eps and (during != before).float().mean() > 0.9
    )
    assert difference(scores, others) < 0.1
