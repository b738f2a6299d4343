"""What a pass hands to the modules of a network beside the arguments of its forward pass.

A model reads with modules of its own (:func:`own_modules`): they share every weight and every hook with the network
it was given and are in eval mode, whatever that one is. A few of their functions are exchanged once, when they are
made, for ones that look at the :class:`Pass` of the thread that runs them. So nothing is registered or exchanged
while a network runs, threads do not see each other's passes, and the network of the user stays as it is.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from bild.models import rope
from bild.models.parts import decoder_of, head_of

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
REMEMBERED_BIASES = 256
LARGEST_BIAS = 4096
"""Query times key tokens up to which a relative position bias is remembered: those of single steps."""


@dataclass(slots=True)
class Pass:
    """One forward pass through modules of our own; as it stands, that of any other caller."""

    positions: Tensor | None = None
    """Of each new token ``[B, T]``, by row; None: rows stand together, and the network counts by itself."""
    ends: Tensor | None = None
    """Tokens each row has read after this pass ``[B]``; None where nothing depends on it."""
    wanted: Tensor | int | None = None
    """Columns whose logits are asked for ``[B, K]``, or how many of the last ones; None: all."""
    chosen: bool = False
    """Whether the head has been shown the wanted columns only."""
    takes_states: bool = False
    """Whether :attr:`states` are asked for."""
    states: Tensor | None = None
    """Hidden states ``[B, T, D]`` behind the last decoder layer."""
    ahead: Callable[[Tensor], Tensor] | None = None
    """Of what the head is shown, what it is to be shown instead."""
    shown: Tensor | None = None
    """What the head has been shown of the wanted columns."""

    def __enter__(self) -> Pass:
        _running.now = self
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        _running.now = PLAIN


PLAIN = Pass()


class _Running(threading.local):
    now: Pass = PLAIN


_running = _Running()


def plainly(device: torch.device) -> torch.autocast:
    """Within, a network computes in its own number formats, whatever its user has set: what is found out of it then,
    and compiled, is still so when something else is set."""
    return torch.autocast(device.type, enabled=False)


def choose(states: Tensor, wanted: Tensor | int) -> Tensor:
    """``states`` ``[B, T, D]`` at the columns ``[B, K]``, or at so many of the last ones."""
    if isinstance(wanted, int):
        return states[:, states.shape[1] - wanted :]
    return states.gather(1, wanted[..., None].expand(-1, -1, states.shape[-1]))


def own_modules(network: PreTrainedModel) -> PreTrainedModel:
    """The network as a model reads with it; see the top of this file."""
    modules = list(network.modules())
    configs = [module.config for module in modules if isinstance(getattr(module, "config", None), PreTrainedConfig)]
    own = sharing(network, *configs)
    for module, theirs in zip(own.modules(), modules, strict=True):
        for name in HOOKS:
            setattr(module, name, getattr(theirs, name))
    return install(own)


def sharing(network: PreTrainedModel, *also: Any) -> PreTrainedModel:
    """A copy of the modules over the same tensors, and over whatever else is named."""
    same = (*network.parameters(), *network.buffers(), *also)
    return copy.deepcopy(network, {id(each): each for each in same})


def install(own: PreTrainedModel) -> PreTrainedModel:
    """Exchange the functions that look at the :class:`Pass`; these modules are nobody else's."""
    modules: Any = own
    modules.eval()
    head = head_of(own)
    if head is not None:
        _exchange(head, _of_wanted)
    decoder = decoder_of(own)
    places = getattr(decoder, "embed_positions", None)
    if isinstance(places, nn.Module) and not takes_positions(own):
        _exchange(places, _of_positions)
    if (layers := layers_of(own)) is not None and len(layers[1]):
        _exchange(layers[1][-1], _giving_states)
    for module in relative_bias_modules(own):
        module.compute_bias = _biases(module)
    for module in rope.switching(own):
        module.forward = rope.by_row(module, lambda: _running.now.ends)
    return own


def takes_positions(network: PreTrainedModel) -> bool:
    """Whether the forward pass takes the position of each token."""
    return "position_ids" in inspect.signature(type(network).forward).parameters


def layers_of(network: PreTrainedModel) -> tuple[str, nn.ModuleList] | None:
    """The decoder layers and what they are called, None where they are not one list."""
    children = decoder_of(network).named_children()
    lists = [(name, child) for name, child in children if isinstance(child, nn.ModuleList)]
    return lists[0] if len(lists) == 1 else None


def relative_bias_modules(network: PreTrainedModel) -> list[Any]:
    """The decoder's attention layers that compute T5's relative position bias."""
    decoder = decoder_of(network) if network.config.is_encoder_decoder else network
    return [
        module
        for module in decoder.modules()
        if getattr(module, "has_relative_attention_bias", False) and hasattr(module, "compute_bias")
    ]


def _exchange(module: nn.Module, around: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]) -> None:
    module.forward = around(module, module.forward)


def _of_wanted(_: nn.Module, head: Callable[..., Any]) -> Callable[..., Any]:
    """The head, shown only the positions that somebody asked for."""

    def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
        now = _running.now
        if now.wanted is None or now.chosen:
            return head(states, *args, **kwargs)
        now.chosen = True
        shown = choose(states, now.wanted)
        now.shown = shown if now.ahead is None else now.ahead(shown)
        return head(now.shown, *args, **kwargs)

    return forward


def _giving_states(_: nn.Module, layer: Callable[..., Any]) -> Callable[..., Any]:
    """The last layer, which leaves its hidden states with the pass."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        output, now = layer(*args, **kwargs), _running.now
        if now.takes_states:
            now.states = output[0] if isinstance(output, tuple) else output
        return output

    return forward


def _of_positions(module: Any, embed: Callable[..., Any]) -> Callable[..., Any]:
    """Embeddings of positions that differ by row, where transformers counts the columns of a batch."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        positions = _running.now.positions
        if positions is None:
            return embed(*args, **kwargs)
        table, offset = position_table(module)
        # Padding may lie beyond the last position.
        places = positions.to(table.device).clamp(max=table.shape[0] - 1 - offset) + offset
        if counts_from_padding(module) and args and isinstance(args[0], Tensor):
            places = places.where(args[0] != module.padding_idx, module.padding_idx)
        return nn.functional.embedding(places, table)

    return forward


def counts_from_padding(module: nn.Module) -> bool:
    """Whether these embeddings count from behind the padding token's, as fairseq does (M2M-100, NLLB)."""
    return hasattr(module, "create_position_ids_from_input_ids")


def position_table(module: Any) -> tuple[Tensor, int]:
    """The embeddings of all positions, and the row of the first; empty where each is computed when it is asked for."""
    table: Tensor = getattr(module, "weights", getattr(module, "weight", torch.empty(0)))
    if counts_from_padding(module):
        return table, module.padding_idx + 1
    return table, getattr(module, "offset", 0)


def _biases(module: Any) -> Callable[..., Tensor]:
    """T5's relative position biases, also for rows that stand at positions of their own (same formula).

    Of rows that stand together they depend on the lengths and the weight alone and are remembered: their fifteen
    small operations are 4 % of a step of a one-layer decoder.
    """
    own = MethodType(type(module).compute_bias, module)
    remembered = lru_cache(maxsize=REMEMBERED_BIASES)(lambda _, args, kwargs: own(*args, **dict(kwargs)))
    # UMT5's function takes fewer arguments; pass only those it accepts.
    taken = inspect.signature(module._relative_position_bucket).parameters
    known = {
        "bidirectional": False,
        "num_buckets": module.relative_attention_num_buckets,
        "max_distance": module.relative_attention_max_distance,
    }
    options = {name: value for name, value in known.items() if name in taken}

    def compute_bias(query_length: int, key_length: int, *args: Any, **kwargs: Any) -> Tensor:
        positions, table = _running.now.positions, module.relative_attention_bias
        if positions is not None:
            distance = torch.arange(key_length, device=positions.device) - positions[..., None]
            bias: Tensor = table(module._relative_position_bucket(distance, **options)).permute(0, 3, 1, 2)
            return bias
        of_numbers = not any(isinstance(each, Tensor) for each in (*args, *kwargs.values()))
        if torch.compiler.is_compiling() or not of_numbers or query_length * key_length > LARGEST_BIAS:
            plain: Tensor = own(query_length, key_length, *args, **kwargs)
            return plain
        weight = table.weight
        state = (weight.data_ptr(), weight.dtype, weight.device, 0 if weight.is_inference() else weight._version)
        known_bias: Tensor = remembered(state, (query_length, key_length, *args), tuple(kwargs.items()))
        return known_bias

    return compute_bias
