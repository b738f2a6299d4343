"""Whether a network is still what a model was made of; cheap enough to ask before every text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

WATCHED = 32
"""Tensors whose numbers are looked at."""
LOOKED_AT = 16
"""Numbers of each."""


class Watch:
    """Remembers a network's modules and weights as they are now.

    Weights that are written to in place count their changes; what writes past that count (``weight.data += …``, as
    merging an adapter does) is found by a look at some numbers of some tensors. On a GPU that look would make the
    host wait, so there only counted changes are seen.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self._network = network
        self._modules = _modules(network)
        self._tensors = [*network.parameters(), *network.buffers()]
        self._counts = self._count()
        self._samples = list(_samples(self._tensors))
        self._looked = self._look()

    def sees_other_modules(self) -> bool:
        """Whether modules or tensors were exchanged, or an adapter was switched."""
        return _modules(self._network) != self._modules

    def sees_change(self) -> bool:
        """Whether that is so, or numbers have changed."""
        return self._count() != self._counts or self.sees_other_modules() or self._look() != self._looked

    def _count(self) -> list[tuple[int, int]]:
        return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in self._tensors]

    def _look(self) -> list[bytes]:
        return [sample.tobytes() for sample in self._samples]


def _modules(network: PreTrainedModel) -> list[Any]:
    found: list[Any] = [network.config._attn_implementation]
    for module in network.modules():
        own = module.__dict__
        found.append(id(module))
        found += map(id, own["_parameters"].values())
        found += map(id, own["_buffers"].values())
        if "_active_adapter" in own:
            found.append(repr([own.get(name) for name in ("_active_adapter", "_disable_adapters", "merged_adapters")]))
    return found


def _samples(tensors: list[Tensor]) -> Iterator[Any]:
    """Views of some numbers, as bytes that are read anew each time."""
    sizeable = [each for each in tensors if each.device.type == "cpu" and each.dim() > 1 and each.is_contiguous()]
    for each in sizeable[:: max(1, len(sizeable) // WATCHED)]:
        numbers = each.detach().reshape(-1).view(torch.uint8).numpy()
        wide = numbers[: len(numbers) // each.element_size() * each.element_size()].reshape(-1, each.element_size())
        yield np.asarray(wide)[:: max(1, len(wide) // LOOKED_AT)]
