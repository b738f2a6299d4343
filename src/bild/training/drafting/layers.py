"""Which layers a drafter keeps, measured by what becomes of the large model's output."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bild.models.cutting import count_layers, with_layers
from bild.training.batches import IGNORED
from bild.training.drafting.shape import Shape, spaced, which_layers, written
from bild.training.losses import divergence
from bild.training.progress import duration, say

Batch = dict[str, Tensor]


def choose_layers(network: PreTrainedModel, shape: Shape, texts: Sequence[Batch]) -> list[int]:
    """The decoder layers to keep, from 0.

    Args:
        network: the large model.
        shape: what was asked for.
        texts: batches of ``input_ids``, ``labels`` and what else the network reads, from the large model's own texts.
    """
    total = count_layers(network)
    asked = which_layers(shape.layers, total)
    if isinstance(asked, list):
        return asked
    if shape.reads == "states":
        return list(range(total - asked, total))
    even = spaced(asked, total)
    if shape.choose == "even" or asked == total:
        return even
    expected = [_logits(network, batch) for batch in texts]

    def apart(kept: Sequence[int]) -> float:
        return _apart(with_layers(network, kept), texts, expected)

    measured = without_least(total, asked, apart)
    if shape.choose == "measured" or measured == even:
        return measured
    distances = {written(kept): apart(kept) for kept in (even, measured)}
    say("untrained, layers " + "; ".join(f"{name} are {value:.2f} nats away" for name, value in distances.items()))
    return min((even, measured), key=lambda kept: distances[written(kept)])


def without_least(total: int, count: int, apart: Callable[[Sequence[int]], float]) -> list[int]:
    """The layers that matter most: each is left out in turn, and those that are missed least go.

    Args:
        total: layers of the large model.
        count: how many stay.
        apart: how far the output moves with these layers alone.
    """
    missed, begin = [], time.perf_counter()
    for layer in range(total):
        missed.append(apart([other for other in range(total) if other != layer]))
        if layer == 0:
            left = (time.perf_counter() - begin) * (total - 1)
            say(f"leaving out each of {total} layers in turn · {duration(left)} left")
    return sorted(sorted(range(total), key=lambda layer: -missed[layer])[:count])


@torch.inference_mode()
def _logits(network: PreTrainedModel, batch: Batch) -> Tensor:
    """Of the labelled positions ``[N, V]``."""
    inputs: Any = {name: each.to(network.device) for name, each in batch.items() if name not in ("labels", "rows")}
    logits: Tensor = network(**inputs, use_cache=False).logits
    return logits[batch["labels"].to(logits.device) != IGNORED]


def _apart(network: PreTrainedModel, texts: Sequence[Batch], expected: Sequence[Tensor]) -> float:
    """Mean ``KL(large || cut)`` in nats over the labelled positions."""
    total, count = 0.0, 0
    for batch, logits in zip(texts, expected, strict=True):
        own = _logits(network, batch)
        every = torch.zeros(1, len(own), dtype=torch.long, device=own.device)
        total += float(divergence(logits[None], own[None], every)) * len(own)
        count += len(own)
    return total / max(1, count)
