"""Tiny pairs whose small model reads the large one's states."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from bild.models.cutting import count_layers, with_layers
from bild.models.joined import add_joined
from bild.models.parallel import add_parallel
from bild.models.seams import sharing
from tests.networks import build


def states_pair(name: str, dtype: torch.dtype = torch.float64, seed: int = 1, **changes) -> tuple[PreTrainedModel, ...]:
    """A large network, and one of its last layer whose weights are others, so that drafts are rolled back."""
    large = build(name, seed=seed, dtype=dtype, layers=2, **changes)
    small = sharing(with_layers(large, [count_layers(large) - 1]))
    add_joined(small)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in small.parameters():
            weight.data = weight + 0.2 * weight.std() * torch.randn(weight.shape, generator=generator, dtype=dtype)
    return large, small.eval()


def at_once_pair(
    name: str, at_once: int = 3, dtype: torch.dtype = torch.float64, **changes
) -> tuple[PreTrainedModel, ...]:
    """As :func:`states_pair`, of a small network that drafts several tokens at once."""
    large, small = states_pair(name, dtype, **changes)
    add_parallel(small, at_once)
    generator = torch.Generator().manual_seed(at_once)
    with torch.no_grad():
        for weight in small.parallel.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator, dtype=dtype) / weight.shape[-1] ** 0.5
    return large, small
