"""Tiny pairs whose small model reads the large one's states, and what it scores by definition."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.models.cutting import count_layers, with_layers
from bild.models.joined import add_joined, join_states
from bild.models.parallel import add_parallel, parallel_head
from bild.models.parts import final_norm, head_of
from bild.models.seams import sharing
from tests.networks import build

CLOSE = {"rtol": 0.0, "atol": 1e-9}


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


def states_of(network, **inputs) -> Tensor:
    """What a network's head reads of all of a text ``[T, D]``."""
    seen = []
    handle = final_norm(network).register_forward_hook(lambda module, given, made: seen.append(made))
    with torch.no_grad():
        network(**inputs, use_cache=False)
    handle.remove()
    return seen[-1][0]


def by_definition(large, small, tokens: list[int], known: int) -> Tensor:
    """Logits after the last of these tokens, the large model having read the first ``known``."""
    states, head = [torch.zeros(large.config.hidden_size, dtype=large.dtype)], parallel_head(small)
    if known:
        states += list(states_of(large, input_ids=torch.tensor([tokens[:known]])))
    # The first pass reads all tokens whose states are known, each one after it the tokens of the one before.
    while True:
        end = min(len(tokens), len(states))
        read = join_states(small, torch.tensor([tokens[:end]]), torch.stack(states[:end])[None])
        with torch.no_grad():
            last = states_of(small, inputs_embeds=read)[-1]
            made = last[None] if head is None else head(last)
            if len(tokens) < end + len(made):
                return head_of(small)(made)[len(tokens) - end]
        states += list(made)
