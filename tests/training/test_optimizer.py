"""Muon and AdamW as one optimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import AdamW, Muon

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
def test_steps_as_the_two_would_alone(scale, smallest, largest):
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
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_schedule_reaches_both_parts():
    network = build("t5", dtype=torch.float32)
    optimizer = make_optimizer(network, recipe(lr=1e-2))
    assert isinstance(optimizer, Together)
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [rate / 2 for rate in before]
    assert schedule.get_last_lr() == [rate / 2 for rate in before]
