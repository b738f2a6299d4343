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

from bild.models.compiled.cache import RowLayer
from bild.models.compiled.graphs import Read, Source, summary
from bild.models.passes import Placed
from bild.models.seams import Pass, choose


class ReadLower(Read):
    """Read new tokens through the layers below the exit.

    The last of ``keys`` and ``values`` keeps the hidden states at the exit, half of each in either.
    """

    def read(self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source) -> tuple[Tensor]:
        """Hidden states ``[B, K, D]`` of each row's last K new tokens."""
        states = self._states(new, new.tokens, keys[:-1], values[:-1], source)
        RowLayer(keys[-1], values[-1], new.positions).update(*states[:, None].chunk(2, dim=-1))
        return (choose(states, new.wanted),)

    def _states(
        self, new: Placed, read: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source
    ) -> Tensor:
        now = Pass(new.positions, new.ends, wanted=0, takes_states=True)
        self.run(now, read, new.positions, keys, values, source)
        assert now.states is not None
        return now.states


class ReadUpper(ReadLower):
    """Go on through the layers above the exit.

    The last of ``keys`` and ``values`` holds the hidden states at the exit, as :class:`ReadLower` wrote them.
    """

    def read(self, new: Placed, keys: Sequence[Tensor], values: Sequence[Tensor], source: Source) -> tuple[Tensor]:
        """Hidden states ``[B, K, D]`` behind the last layer; of the new tokens only the number matters."""
        below = torch.cat([choose(half[:, 0], new.positions) for half in (keys[-1], values[-1])], dim=-1)
        states = self._states(new, below, keys[:-1], values[:-1], source)
        return (choose(states, new.wanted),)


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
