"""Whether a network is still what a model was made of; cheap enough to ask before every text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

WATCHED = 32
"""Tensors whose numbers are looked at."""
LOOKED_AT = 16
"""Numbers of each."""
VERSION = attrgetter("_version")
Tell = Callable[[], Any]
"""Tells all that is known of tensors, to be compared with what it told before."""
ADAPTER = ("_active_adapter", "_disable_adapters", "merged_adapters")
"""What a layer with adapters (PEFT) remembers of which are in use."""


class Watch:
    """Remembers a network's modules and weights as they are now.

    Weights that are written to in place count their changes; what writes past that count (``weight.data += …``, as
    merging an adapter does) is found by a look at some numbers of some tensors. On a GPU that look would make the
    host wait, so there only counted changes are seen.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        self._config = network.config
        # Looked through by these, not by the network's own generators, in a tenth of the time.
        modules = [module.__dict__ for module in network.modules()]
        parts = [own[name] for own in modules for name in ("_modules", "_parameters")]
        self._parts = [part for part in parts if part]
        # Kept alive, so that nothing new can stand where something old stood.
        self._held = self._hold()
        self._adapted = [own for own in modules if ADAPTER[0] in own]
        self._tensors = [*network.parameters(), *_kept(network)]
        self._modules = self._list()
        self._counting = [each for each in self._tensors if not each.is_inference()]
        self._sampled = _sampled(self._tensors)
        self._samples = [_sample(each) for each in self._sampled]
        self._tell: Tell = self._state
        self._told = self._tell()

    def sees_other_modules(self) -> bool:
        """Whether modules or tensors were exchanged, or an adapter was switched."""
        return not _are_same(self._hold(), self._held) or self._list() != self._modules

    def sees_change(self) -> bool:
        """Whether that is so, or numbers have changed."""
        return self._tell() != self._told or self.sees_other_modules()

    def tell_by(self, fingerprint: Callable[[Sequence[Tensor], Sequence[Tensor], int], Tell]) -> None:
        """Have all that is known of the tensors told by somebody faster.

        Args:
            fingerprint: from the tensors, those that are sampled and how many numbers of each, to what tells it.
        """
        tell = fingerprint(self._tensors, self._sampled, LOOKED_AT)
        told = tell()
        # What has changed since the watch began must stay a change.
        if not self.sees_change():
            self._tell, self._told = tell, told

    def _list(self) -> list[Any]:
        adapters = [repr([own.get(name) for name in ADAPTER]) for own in self._adapted]
        first = self._tensors[0]
        return [self._config._attn_implementation, first.device, first.dtype, *adapters]

    # Without a loop in Python: of hundreds of tensors before every text, a loop is a tenth of a short text's time.

    def _hold(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._parts)))

    def _state(self) -> tuple[list[int], list[int], list[bytes]]:
        places, versions = list(map(Tensor.data_ptr, self._tensors)), list(map(VERSION, self._counting))
        return places, versions, [sample.tobytes() for sample in self._samples]


def _are_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def _kept(network: PreTrainedModel) -> Iterator[Tensor]:
    """Buffers that a checkpoint holds; the others follow from the configuration, and some change while it runs."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def _sampled(tensors: list[Tensor]) -> list[Tensor]:
    """Those of which some numbers are looked at."""
    sizeable = [each for each in tensors if each.device.type == "cpu" and each.dim() > 1 and each.is_contiguous()]
    return sizeable[:: max(1, len(sizeable) // WATCHED)]


def _sample(tensor: Tensor) -> Any:
    """A view of some numbers, as bytes that are read anew each time."""
    numbers = tensor.detach().reshape(-1).view(torch.uint8).numpy().reshape(-1, tensor.element_size())
    return numbers[:: max(1, len(numbers) // LOOKED_AT)]
