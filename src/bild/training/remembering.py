"""What frozen networks have made of texts, kept so that later rounds over the same texts need not compute it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from bild.models.parts import head_of

SHARE = 0.25
"""Of the memory that is free, for what is kept."""
CONTAINER = Path("/sys/fs/cgroup")
ROUNDING = 0.02
"""Nats that logits may be apart which are computed of kept states: those are kept in 16 bits."""


class Memory:
    """States ``[T, D]`` of texts, by the number of each, in 16 bits and in memory.

    Args:
        most_bytes: beyond which no text is added.
    """

    def __init__(self, most_bytes: int) -> None:
        self.left = most_bytes
        self._states: dict[int, Tensor] = {}

    def of(self, numbers: Sequence[int], width: int) -> Tensor | None:
        """Of these texts, padded to a width ``[B, T, D]``; None if some are not there.

        Args:
            numbers: of the texts.
            width: at least the length of each.
        """
        if any(number not in self._states for number in numbers):
            return None
        together = pad_sequence([self._states[number] for number in numbers], batch_first=True).float()
        return torch.nn.functional.pad(together, (0, 0, 0, width - together.shape[1]))

    def keep(self, numbers: Sequence[int], states: Tensor, is_there: Tensor) -> None:
        """Add texts, as long as there is room.

        Args:
            numbers: of the texts.
            states: ``[B, T, D]``.
            is_there: which of them are not padding ``[B, T]``; a text's are its first ones.
        """
        small = states.detach().to(torch.bfloat16 if states.dtype == torch.bfloat16 else torch.float16)
        for number, row, length in zip(numbers, small, is_there.sum(1).tolist(), strict=True):
            size = length * row.shape[-1] * row.element_size()
            if number not in self._states and size <= self.left:
                self._states[number] = row[:length].clone()
                self.left -= size


def free_bytes(container: Path = CONTAINER) -> int:
    """Memory that may be used for what is kept: a share of what is free here, or left to the container.

    Args:
        container: folder where its limits are (cgroup 2).
    """
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
    try:
        most, used = ((container / name).read_text().strip() for name in ("memory.max", "memory.current"))
        free = min(free, max(0, int(most) - int(used)))
    except (OSError, ValueError):
        # No container, or one without a limit ("max").
        pass
    return int(SHARE * free)


@contextmanager
def head_inputs(network: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the head of a network reads while this lasts, a tensor ``[B, T, D]`` a pass."""
    seen: list[Tensor] = []

    def note(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    handle = head_of(network).register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def read_by_head(network: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits ``[B, T, V]`` of what its head reads, in a network that does no more with it than to add a bias."""
    logits: Tensor = head_of(network)(states)
    bias = getattr(network, "final_logits_bias", None)
    return logits if bias is None else logits + bias


def are_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two computations of the same logits differ by rounding alone."""
    return bool(((one.log_softmax(-1) - other.log_softmax(-1)).abs().amax() <= ROUNDING).item())
