"""What is minimised: the network's own loss, or one that also makes its earlier layers able to write.

With ``L(i)`` the cross-entropy of the tokens under the shared head on decoder layer ``i`` of ``n``:

    last        L(n)
    early-exit  ½ L(exit layer) + ½ L(n)           Kim et al. 2023, section 4.4
    calm        Σ wᵢ L(i) with wᵢ = i / Σⱼ j       Schuster et al. 2022; Kim et al. 2023, section 7.2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from bild.errors import InputError, LoadError
from bild.training.batches import IGNORED
from bild.training.recipe import Recipe

FINAL_NORMS = ("final_layer_norm", "final_layernorm", "norm", "ln_f", "layer_norm", "final_norm")
"""What architectures call the norm between the decoder's last layer and the head."""


class Objective(nn.Module):
    """A network and what its training minimises, as one module whose forward pass gives the loss.

    Args:
        network: its weights are trained in place.
        recipe: loss, exit layer and label smoothing.
        dtype: what matrix products are computed in; weights keep theirs.

    Raises:
        InputError: an exit layer the network does not have.
        LoadError: a loss of inner layers for an architecture whose layers cannot be read out.
    """

    def __init__(self, network: PreTrainedModel, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network, self.recipe, self.dtype = network, recipe, dtype
        self.cross_entropy = cross_entropy
        config = network.config.get_text_config(decoder=True)
        self.weights = layer_weights(
            recipe, config.num_hidden_layers if _decoder_layers(config) is None else _decoder_layers(config)
        )
        self.norm = None if recipe.loss == "last" else _final_norm(network)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """The loss, a scalar: mean over the labelled tokens.

        Args:
            labels: next tokens ``[B, T]``, :data:`~bild.training.batches.IGNORED` where none counts.
            inputs: of the network, ``[B, …]``.
        """
        every = self.recipe.loss != "last"
        with torch.autocast(labels.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.network(**inputs, use_cache=False, output_hidden_states=every)
            logits = {len(self.weights): output.logits} | (self._inner(output) if every else {})
            losses = [
                weight * self.cross_entropy(logits[layer], labels, self.recipe.label_smoothing)
                for layer, weight in enumerate(self.weights, 1)
                if weight
            ]
        return torch.stack(losses).sum()

    def _inner(self, output: Any) -> dict[int, Tensor]:
        """Logits of the layers before the last that count, through the norm and the head of the last."""
        states = output.decoder_hidden_states if self.network.config.is_encoder_decoder else output.hidden_states
        wanted = [layer for layer, weight in enumerate(self.weights[:-1], 1) if weight]
        return {layer: self._head(self.norm(states[layer])) for layer in wanted}

    def _head(self, hidden: Tensor) -> Tensor:
        config = self.network.config
        # T5 with tied embeddings scales what goes into its head.
        if getattr(config, "scale_decoder_outputs", False):
            hidden = hidden * config.d_model**-0.5
        logits: Tensor = self.network.get_output_embeddings()(hidden)
        return logits

    def compile_blocks(self) -> None:
        """Compile each layer and the cross-entropy: a layer's graph serves all layers of its kind."""
        for module in self.network.modules():
            if isinstance(module, nn.ModuleList) and len({type(layer) for layer in module}) == 1 and len(module) > 1:
                for layer in module:
                    layer.compile(dynamic=True)
        self.cross_entropy = torch.compile(cross_entropy, dynamic=True)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean negative log-likelihood of the labelled tokens in nats, with a share spread over all tokens.

    Args:
        logits: ``[B, T, V]``.
        labels: ``[B, T]``.
        label_smoothing: 0…1.
    """
    flat = logits.flatten(0, 1).float()
    return functional.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, label_smoothing=label_smoothing)


def layer_weights(recipe: Recipe, layers: int) -> list[float]:
    """How much the loss of each decoder layer counts; they add up to 1.

    Raises:
        InputError: an exit layer that is not before the last.
    """
    if recipe.loss == "calm":
        total = layers * (layers + 1) / 2
        return [layer / total for layer in range(1, layers + 1)]
    if recipe.loss == "last":
        return [0.0] * (layers - 1) + [1.0]
    assert recipe.exit_layer is not None
    if not recipe.exit_layer < layers:
        raise InputError(
            f"exit_layer is {recipe.exit_layer}; allowed is 1 to {layers - 1}, the network has {layers} layers"
        )
    return [0.5 if layer in (recipe.exit_layer, layers) else 0.0 for layer in range(1, layers + 1)]


def _decoder_layers(config: Any) -> int | None:
    for name in ("num_decoder_layers", "decoder_layers"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return None


def _final_norm(network: PreTrainedModel) -> nn.Module:
    """The norm that the head's input went through."""
    decoder = network.get_decoder()
    for name in FINAL_NORMS:
        norm = getattr(decoder, name, None)
        if isinstance(norm, nn.Module):
            return norm
    if any(hasattr(decoder, name) for name in ("layers", "block", "h")):
        return nn.Identity()
    raise LoadError(f"{type(network).__name__} does not show its layers; use --loss last")


def targets_in(labels: Tensor) -> int:
    """How many tokens count."""
    return int((labels != IGNORED).sum())


__all__: Sequence[str] = ["Objective", "cross_entropy", "layer_weights", "targets_in"]
