"""The graph of a deep network, from that of its first few layers: tracing takes as long as a network is deep, and
layers that are alike make alike graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from bild.errors import one_line
from bild.models import kernels
from bild.models.compiled import layers
from bild.models.compiled.graphs import Read
from bild.models.compiled.layers import Cut, Repeat
from bild.models.cutting import with_layers
from bild.models.parts import decoder_config
from bild.models.seams import layers_of

logger = logging.getLogger("bild")

TRACED = 3
"""Parts of layers that are traced: one may differ from the others, and two must be alike."""
PLAIN = (bool, int, float, str, tuple, type(None))
"""What decides what a module does, beside its weights."""
OWN = {"layer_idx", "training"}
"""Of these, what may differ between layers that do the same."""

Export = Callable[[nn.Module, Sequence[Any], Any], ExportedProgram]


def cut_of_few(module: nn.Module, inputs: Sequence[Any], dynamic_shapes: Any, export: Export) -> Cut | None:
    """The parts of a deep network's pass over new tokens, without tracing all of it.

    Args:
        module: the pass.
        inputs: example arguments, as for :func:`~bild.models.compiled.compiling.compiled`.
        dynamic_shapes: likewise.
        export: traces a module.

    Returns:
        None where it is no such pass, or its layers are few or not alike.
    """
    if type(module) is not Read:
        return None
    named = layers_of(module.network)
    count = 0 if named is None else len(named[1])
    together = layers.together_of(count)
    traced = TRACED * together
    if named is None or count < max(layers.LEAST, traced + together) or not are_alike(module.network, [*named[1]][1:]):
        return None
    try:
        few = Read(with_layers(module.network, range(traced)), module.farthest, module.has_places)
        program = export(few, *(_first(each, traced, count) for each in (inputs, dynamic_shapes)))
        if not kernels.has_all_products(program.graph):
            return None
        tensors = {name: each.detach() for name, each in _tensors(module)}
        starts, arguments = _starts(inputs, traced, count)
        repeat = Repeat(count // together - TRACED, together, starts, arguments, tensors.__getitem__)
        return layers.cut(program, few, repeat)
    except Exception as error:  # what nobody has thought of is traced whole
        logger.info("%s is traced whole (%s)", type(module.network).__name__, one_line(error))
        return None


def are_alike(network: PreTrainedModel, stack: Sequence[nn.Module]) -> bool:
    """Whether layers do the same, each with weights of its own."""
    config = decoder_config(network)
    for name, value in vars(config).items():
        # As GPT-2 can divide scores by the number of the layer.
        if "layer_idx" in name and value:
            return False
        # The first layer is not asked.
        if isinstance(value, list | tuple) and len(value) == len(stack) + 1 and len(set(map(str, value[1:]))) > 1:
            return False
    return len({str(_described(layer)) for layer in stack}) == 1


def _described(layer: nn.Module) -> list[Any]:
    found: list[Any] = []
    for name, module in layer.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and key not in OWN}
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        shapes = sorted((key, tuple(tensor.shape), str(tensor.dtype)) for key, tensor in held)
        found.append((name, type(module).__qualname__, sorted(plain.items()), shapes))
    return found


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _first(values: Sequence[Any], few: int, count: int) -> tuple[Any, ...]:
    """Arguments of a pass of a few layers: of each list that has something for every layer, its first ones."""
    return tuple(each[:few] if isinstance(each, list | tuple) and len(each) == count else each for each in values)


def _starts(inputs: Sequence[Any], few: int, count: int) -> tuple[list[tuple[int, int, int]], int]:
    """Where among the tensors of the arguments each of those stands: place with a few layers and with all, and how many
    tensors it is with a few; and how many tensors there are with all."""
    starts, short, whole = [], 0, 0
    for short_value, value in zip(_first(inputs, few, count), inputs, strict=True):
        sizes = [
            len(each) if isinstance(each, list | tuple) else int(each is not None) for each in (short_value, value)
        ]
        starts.append((short, whole, sizes[0]))
        short, whole = short + sizes[0], whole + sizes[1]
    return starts, whole
