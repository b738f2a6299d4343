"""Muon for the weights of hidden layers beside AdamW for the rest, as one optimizer; or Adafactor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel
from transformers.optimization import Adafactor
from transformers.pytorch_utils import Conv1D

from bild.training.muon import Muon
from bild.training.recipe import Recipe

EMBEDDING_RATE = 50
"""Learning rate of embeddings over that of hidden weights, for embeddings of size 1 and more; less for smaller
ones. T5's begin at standard deviation 1, and at a fiftieth of this nothing is learnt for thousands of steps;
others begin at 0.02."""


def make_optimizer(network: PreTrainedModel, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer for a network.

    Args:
        network: with the weights training begins from.
        recipe: with its learning rate settled.
    """
    assert recipe.lr is not None
    if recipe.optimizer == "adafactor":
        constant = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        learning = [weight for weight in network.parameters() if weight.requires_grad]
        return Adafactor(learning, lr=recipe.lr, weight_decay=recipe.weight_decay, **constant)
    hidden, embeddings, rest = split_weights(network)
    groups: list[dict[str, Any]] = [
        {"params": [weight], "lr": recipe.lr * EMBEDDING_RATE * _size(weight)} for weight in embeddings
    ]
    return Together(
        [
            Muon(hidden, lr=recipe.lr, weight_decay=recipe.weight_decay),
            AdamW([*groups, {"params": rest}], lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
    )


def split_weights(network: PreTrainedModel) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trainable weights: 2-D ones of hidden layers, those of the vocabulary (embeddings and head), the rest."""
    vocabulary: list[Any] = [network.get_input_embeddings().weight, network.get_output_embeddings().weight]
    of_vocabulary: dict[int, Any] = {id(weight): weight for weight in vocabulary if weight.requires_grad}
    layers = [module.weight for module in network.modules() if isinstance(module, nn.Linear | Conv1D)]
    hidden: dict[int, Any] = {
        id(weight): weight for weight in layers if weight.requires_grad and id(weight) not in of_vocabulary
    }
    rest = [
        weight for weight in network.parameters() if weight.requires_grad and id(weight) not in hidden | of_vocabulary
    ]
    return list(hidden.values()), list(of_vocabulary.values()), rest


def _size(weight: Tensor) -> float:
    """Root mean square, 1 at most."""
    return min(1.0, max(1e-3, float(weight.detach().float().square().mean().sqrt())))


class Together(Optimizer):
    """Several optimizers, each with weights of its own, stepped together.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = [part for part in parts if any(group["params"] for group in part.param_groups)]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        # The very same groups, so that a schedule that changes a rate here changes it there.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of each part."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of the parts, one after the other."""
        return {"state": dict(_numbered(self.parts)), "param_groups": Optimizer.state_dict(self)["param_groups"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        first = 0
        for part in self.parts:
            own = part.state_dict()
            count = sum(len(group["params"]) for group in own["param_groups"])
            own["state"] = {
                number: state_dict["state"][first + number]
                for number in range(count)
                if first + number in state_dict["state"]
            }
            part.load_state_dict(own)
            first += count
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _numbered(parts: list[Optimizer]) -> list[tuple[int, dict[str, Any]]]:
    numbered, first = [], 0
    for part in parts:
        own = part.state_dict()
        numbered += [(first + number, state) for number, state in own["state"].items()]
        first += sum(len(group["params"]) for group in own["param_groups"])
    return numbered
