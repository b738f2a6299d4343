"""What lets one pass of a network that reads states (:mod:`bild.models.joined`) draft several tokens at once.

Of the state ``s`` that its head reads of the next token, those of the tokens after it are guessed in parallel, as
SpecFormer does (2511.20340): a linear layer spreads ``s`` over ``m`` places, attention among the places and a gated
layer mend them, and the head reads them all in one product. No place is told what was drafted in the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from bild.models.parts import head_of

MOST_AT_ONCE = 16
"""Tokens of one pass at most."""
WIDTH = 64
"""Of an attention head, where the states can be cut so."""
INNER = 2
"""Widths of the gated layer of a new network."""


class ParallelHead(nn.Module):
    """States of several tokens, of that of the first: ``[…, D] -> […, m, D]``; the first stays as it is.

    Args:
        width: of a state, D.
        at_once: tokens, m, 2…
        inner: width of the gated layer.
    """

    def __init__(self, width: int, at_once: int, inner: int) -> None:
        super().__init__()
        self.at_once, self.heads = at_once, width // WIDTH if width % WIDTH == 0 else 1
        self.spread = nn.Linear(width, (at_once - 1) * width)
        self.attend_norm, self.gated_norm = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.attend_in, self.attend_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gated_in, self.gated_out = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """See the class."""
        others = self.spread(states).unflatten(-1, (self.at_once - 1, states.shape[-1]))
        places = torch.cat([states[..., None, :], others], -2)
        # Every place sees every other: none of them is told what is drafted.
        parts = self.attend_in(self.attend_norm(places)).unflatten(-1, (3, self.heads, -1))
        seen = functional.scaled_dot_product_attention(*(part.transpose(-3, -2) for part in parts.unbind(-3)))
        mended = places + self.attend_out(seen.transpose(-3, -2).flatten(-2))
        gate, value = self.gated_in(self.gated_norm(mended)).chunk(2, -1)
        mended = mended + self.gated_out(functional.silu(gate) * value)
        return torch.cat([states[..., None, :], mended[..., 1:, :]], -2)


def parallel_head(network: PreTrainedModel) -> ParallelHead | None:
    """Of a network, None where it drafts a token a pass."""
    return getattr(network, "parallel", None)


def ahead_of(network: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """What its head is shown where it drafts several tokens at once: states ``[B, K, D]``, and behind them those of the
    places after the last one ``[B, m − 1, D]``."""
    parallel = parallel_head(network)

    def shown(states: Tensor) -> Tensor:
        assert parallel is not None
        return torch.cat([states[:, :-1], parallel(states[:, -1])], 1)

    return None if parallel is None else shown


def add_parallel(network: PreTrainedModel, at_once: int) -> None:
    """Let a network that reads states draft several tokens at once, in place: at first each is the one before it.

    Args:
        network: it.
        at_once: tokens, 2 to 16.
    """
    width = network.config.get_text_config(decoder=True).hidden_size
    head = ParallelHead(width, at_once, INNER * width)
    with torch.no_grad():
        head.spread.weight.copy_(torch.eye(width).repeat(at_once - 1, 1))
        for weight in (head.spread.bias, head.attend_out.weight, head.gated_out.weight):
            weight.zero_()
    _set(network, head)


def parallel_of(weights: dict[str, Tensor]) -> ParallelHead:
    """The one whose weights these are, by name.

    Raises:
        ValueError: they are those of none.
    """
    try:
        outputs, width = weights["spread.weight"].shape
        at_once, inner = 1 + outputs // width, weights["gated_out.weight"].shape[1]
        if not 1 < at_once <= MOST_AT_ONCE:
            raise ValueError(f"it drafts {at_once} tokens at once; allowed is 2 to {MOST_AT_ONCE}")
        with torch.device("meta"):
            head = ParallelHead(width, at_once, inner)
        head.load_state_dict(weights, assign=True)
    except (KeyError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError("its weights are missing, or of other shapes") from error
    return head


def attach_parallel(network: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give a network the head whose weights these are.

    Raises:
        ValueError: they are those of none, or of another width.
    """
    head, width = parallel_of(weights), network.config.get_text_config(decoder=True).hidden_size
    if head.spread.in_features != width:
        raise ValueError(f"its states have a width of {head.spread.in_features}; {width} is needed")
    _set(network, head)


@contextmanager
def drafting_at_once(network: PreTrainedModel) -> Iterator[None]:
    """Within, a network scores the tokens of all places behind each of its tokens ``[B, T · m, V]``."""
    parallel = parallel_head(network)
    assert parallel is not None
    handle = head_of(network).register_forward_pre_hook(lambda _, inputs: (parallel(inputs[0]).flatten(1, 2),))
    try:
        yield
    finally:
        handle.remove()


def _set(network: PreTrainedModel, head: ParallelHead) -> None:
    module: Any = network
    module.parallel = head.to(network.device, network.dtype)
