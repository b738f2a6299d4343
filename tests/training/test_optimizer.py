"""Muon and AdamW as one optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import AdamW, Muon

from bild.training import muon
from bild.training.losses import Objective
from bild.training.optimizer import EMBEDDING_RATE, Together, make_optimizer, split_weights
from tests.networks import ARCHITECTURES, build
from tests.training.test_losses import batch_of
from tests.training.tiny import recipe


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_has_one_place(name):
    network = build(name, dtype=torch.float32)
    parts = split_weights(network)
    ids = [id(weight) for part in parts for weight in part]
    assert len(ids) == len(set(ids)) and set(ids) == {id(w) for w in network.parameters() if w.requires_grad}
    hidden, embeddings, _ = parts
    assert all(weight.ndim == 2 for weight in hidden)
    assert {id(network.get_input_embeddings().weight), id(network.get_output_embeddings().weight)} == set(
        map(id, embeddings)
    )


def step(network, optimizer) -> None:
    optimizer.zero_grad()
    Objective(network, recipe())(**batch_of(network)).backward()
    optimizer.step()


@pytest.mark.parametrize(("scale", "smallest", "largest"), [(1.0, 0.9, 1.0), (0.02, 0.01, 0.1)])
def test_steps_as_the_two_would_alone(scale, smallest, largest, monkeypatch):
    # As PyTorch's own, whatever is fast here.
    monkeypatch.setattr(muon, "resolve_dtype", lambda *_: torch.bfloat16)
    together = build("t5", dtype=torch.float32)
    with torch.no_grad():
        for weight in split_weights(together)[1]:
            weight *= scale
    apart = copy.deepcopy(together)
    one = make_optimizer(together, recipe(lr=1e-2))
    hidden, embeddings, rest = split_weights(apart)
    sizes = [min(1.0, float(weight.detach().square().mean().sqrt())) for weight in embeddings]
    assert all(smallest < size <= largest for size in sizes)
    rated = [{"params": [w], "lr": 1e-2 * EMBEDDING_RATE * size} for w, size in zip(embeddings, sizes, strict=True)]
    two = [
        Muon(hidden, lr=1e-2, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        AdamW([*rated, {"params": rest}], lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for _ in range(3):
        step(together, one)
        for part in two:
            part.zero_grad()
        Objective(apart, recipe())(**batch_of(apart)).backward()
        for part in two:
            part.step()
    rates = {id(weight): 1e-2 * EMBEDDING_RATE * size for weight, size in zip(embeddings, sizes, strict=True)}
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        # Products of several matrices at once round otherwise, in bfloat16: a twentieth of a step at most.
        assert torch.allclose(ours, theirs, rtol=0, atol=0.05 * rates.get(id(theirs), 1e-2)), name


def test_a_schedule_reaches_both_parts():
    network = build("t5", dtype=torch.float32)
    optimizer = make_optimizer(network, recipe(lr=1e-2))
    assert isinstance(optimizer, Together)
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [rate / 2 for rate in before]
    assert schedule.get_last_lr() == [rate / 2 for rate in before]


@pytest.mark.parametrize("shape", [(3, 24, 16), (2, 16, 40)])
def test_singular_values_come_near_one_in_the_format_that_is_fast(shape, monkeypatch):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        monkeypatch.setattr(muon, "resolve_dtype", lambda *_, fast=dtype: fast)
        found[dtype] = muon.orthogonal(matrices)
    # Never in float16, whose range ends early.
    assert [each.dtype for each in found.values()] == [torch.bfloat16, torch.float32, torch.float32]
    assert ((torch.linalg.svdvals(found[torch.float32]) - 1).abs() < 0.35).all()
    torch.testing.assert_close(found[torch.bfloat16].float(), found[torch.float32], rtol=0, atol=0.03)


def test_muon_takes_weights_of_one_shape_together_and_steps_as_pytorchs(monkeypatch):
    monkeypatch.setattr(muon, "STACKED", 2 * 24 * 16)
    shapes = [(24, 16), (16, 24), (24, 16), (16, 16), (24, 16)]
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one)
    optimizers = (
        muon.Muon(ours, lr=0.1, weight_decay=0.2, momentum=0.9),
        Muon(theirs, lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
    )
    for number, step_gradients in enumerate(gradients):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            for weight, gradient in zip(weights, step_gradients, strict=True):
                weight.grad = gradient.clone()
            # A weight without a gradient stays where it is.
            weights[3].grad = None if number == 1 else weights[3].grad
            optimizer.step()
    assert muon.alike(ours) == [[0, 2], [4], [1], [3]]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=5e-3), float((one - other).abs().max())
