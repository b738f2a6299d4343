"""What tells a wrong computation from rounding."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

from bild.models import probing
from bild.models.probing import Reference, Rounding, difference, nudged
from bild.models.seams import own_modules
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


def test_rounding_explains_no_more_than_what_it_makes_in_this_network(monkeypatch):
    """Of a Llama of thirty layers in int8, the pieces of a text were a fifth of the spread apart, by rounding alone."""
    network, tokens = own_modules(build("llama", dtype=torch.float32)), [5, 9, 3, 7]
    whole = Reference(network, []).read(tokens, len(tokens))
    centred = whole - whole.mean(-1, keepdim=True)

    def explained(share: float) -> bool:
        return Rounding(network, [], tokens, whole).explains(whole, whole + share * centred)

    assert difference(whole, whole + 0.2 * centred) == pytest.approx(0.2, abs=1e-3)
    assert [explained(share) for share in (0.09, 0.2, 0.6, math.nan)] == [True, False, False, False]
    monkeypatch.setattr(probing, "nudged", shaken)
    assert [explained(share) for share in (0.09, 0.2, 0.6, math.nan)] == [True, True, False, False]


@contextmanager
def shaken(network):
    """As if a rounding were worth a tenth of what is embedded."""
    embedding = network.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, inputs, embedded: embedded + embedded.flip(-1) / 10)
    try:
        yield
    finally:
        handle.remove()
