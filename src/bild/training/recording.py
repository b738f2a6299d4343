"""A GPU's training steps, recorded once for each shape of batch and played back.

A step of a small network is thousands of kernels of microseconds each, and starting them one by one takes several
times as long as running them. A recording (CUDA graph) of the forward and the backward pass starts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bild.training.losses import Objective

WARM_UP = 2
"""Passes before a recording: libraries choose and allocate in the first ones."""
MOST_WEIGHTS = 1 << 28
"""A network of more weights keeps a GPU busy as it is, and its recordings would take the memory of several batches."""


def pays(objective: Objective) -> bool:
    """Whether steps of a network are better recorded."""
    network = objective.network
    return network.device.type == "cuda" and sum(weight.numel() for weight in network.parameters()) <= MOST_WEIGHTS


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    loss: Tensor


class Recorder:
    """Computes losses and gradients of an objective on a GPU.

    Args:
        objective: what is minimised; its weights stay where they are.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.weights: list[nn.Parameter] = [weight for weight in objective.parameters() if weight.requires_grad]
        self.gradients = [torch.zeros_like(weight) for weight in self.weights]
        self.recordings: dict[tuple[torch.Size, ...], _Recording] = {}
        # One after the other they run in the same memory.
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of a batch, valid until the next one; each weight's ``grad`` is its gradient.

        Args:
            inputs: of the objective, on its device.
        """
        shape = tuple(value.shape for value in inputs.values())
        if shape not in self.recordings:
            self.recordings[shape] = self._record(inputs)
        recording = self.recordings[shape]
        for name, value in inputs.items():
            recording.inputs[name].copy_(value)
        recording.graph.replay()
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient
        return recording.loss

    def _record(self, inputs: dict[str, Tensor]) -> _Recording:
        inputs = {name: value.clone() for name, value in inputs.items()}
        beside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._compute(inputs)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            loss = self._compute(inputs)
        return _Recording(graph, inputs, loss)

    def _compute(self, inputs: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.objective(**inputs)
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        used = [(own, new) for own, new in zip(self.gradients, gradients, strict=True) if new is not None]
        torch._foreach_copy_([own for own, _ in used], [new for _, new in used])
        return loss.detach()
