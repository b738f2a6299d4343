"""Muon, the weights of one shape orthogonalised together.

Jordan 2024, with the step size of Liu et al. 2025 ("Muon is scalable"): as :class:`torch.optim.Muon` computes it
with ``adjust_lr_fn="match_rms_adamw"``, which takes one weight after the other. A network has hundreds of weights of
a handful of shapes, so that on a GPU nearly all the time of a step of a small network went into starting kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bild.models import resolve_dtype

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
STACKED = 1 << 25
"""Most numbers in one stack: larger weights keep a device busy one by one, and a stack is a copy."""


class Muon(Optimizer):
    """Steps along the orthogonalised momentum of each weight.

    Args:
        weights: 2-D, of hidden layers.
        lr: learning rate, above 0; the root mean square of a step is a fifth of it, as AdamW's is about.
        weight_decay: decoupled, 0….
        momentum: 0…1; Nesterov's.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.01, momentum: float = 0.95
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
            momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for numbers in alike(weights):
                steps = orthogonal(torch.stack([updates[number] for number in numbers])).to(weights[numbers[0]].dtype)
                rate = 0.2 * max(steps.shape[1:]) ** 0.5 * group["lr"]
                torch._foreach_add_([weights[number] for number in numbers], list(steps.unbind()), alpha=-rate)


def alike(weights: Sequence[Tensor]) -> list[list[int]]:
    """Places of weights of one shape, as many together as :data:`STACKED` allows."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, weight in enumerate(weights):
        by_shape.setdefault(weight.shape, []).append(number)
    parts = []
    for shape, numbers in by_shape.items():
        most = max(1, STACKED // shape.numel())
        parts += [numbers[at : at + most] for at in range(0, len(numbers), most)]
    return parts


def orthogonal(matrices: Tensor) -> Tensor:
    """Each matrix with its singular values brought near 1, by a quintic Newton–Schulz iteration.

    In bfloat16 where that is multiplied fast, which is exact enough; elsewhere its products take ten times as long as
    those of float32, and most of a small network's step.

    Args:
        matrices: ``[n, rows, columns]``.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    has_bfloat16 = resolve_dtype("auto", matrices.device) == torch.bfloat16
    x = matrices.bfloat16() if has_bfloat16 else matrices.float()
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
