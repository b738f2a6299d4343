"""What is compiled of a network that exits early: the layers below, the layers above, and the head, each once.

The head is a graph of its own because both sides need it, and a graph holds a packed copy of its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from bild.models.early_exit.split import states_of
from bild.models.graphs import Placed, Read, RowLayer, Source, choose, summary


class ReadLower(Read):
    """Read new tokens through the layers below the exit.

    The last of ``keys`` and ``values`` keeps the hidden states at the exit, half of each in either.
    """

    def _read(self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source) -> tuple[Tensor]:
        """Hidden states ``[B, K, D]`` of each row's last K new tokens."""
        with states_of(self.network) as states:
            self._run(new.tokens, new.positions, keys[:-1], values[:-1], source)
        RowLayer(keys[-1], values[-1], new.positions).update(*states[0][:, None].chunk(2, dim=-1))
        return (choose(states[0], new.wanted),)


class ReadUpper(Read):
    """Go on through the layers above the exit.

    The last of ``keys`` and ``values`` holds the hidden states at the exit, as :class:`ReadLower` wrote them.
    """

    def _read(self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source) -> tuple[Tensor]:
        """Hidden states ``[B, K, D]`` behind the last layer; of the new tokens only the number matters."""
        below = torch.cat([choose(half[:, 0], new.positions) for half in (keys[-1], values[-1])], dim=-1)
        with states_of(self.network) as states:
            self._run(below, new.positions, keys[:-1], values[:-1], source)
        return (choose(states[0], new.wanted),)


class Score(nn.Module):
    """The final norm and the head.

    Args:
        network: the model without any decoder layer.
    """

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, states: Tensor) -> tuple[Tensor, ...]:
        """As :class:`Read`, of hidden states ``[B, K, D]``."""
        inputs: dict[str, Any] = {"inputs_embeds": states}
        if self.network.config.is_encoder_decoder:
            inputs = {"decoder_inputs_embeds": states, "encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        return summary(self.network(**inputs, use_cache=False).logits)
