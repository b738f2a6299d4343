"""The first layers of the large model as the small one (section 4.4): no weight is held twice, no layer runs twice.

The large model is cut in two (:mod:`.split`). The layers below the exit keep the hidden states of what they have
read; with the norm and the head they are the small model, and the layers above go on from those states, so
verifying a draft runs only what drafting it has not. :mod:`.shared` is the text both sides read, :mod:`.eager` and
:mod:`.compiled` are the runtimes.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from bild.models.compiled import is_prepared
from bild.models.early_exit.compiled import CompiledExitModel, CompiledSplitModel, last_graph
from bild.models.early_exit.eager import ExitModel, SplitModel
from bild.models.early_exit.split import exit_layer
from bild.models.protocol import Model

__all__ = [
    "CompiledExitModel",
    "CompiledSplitModel",
    "ExitModel",
    "SplitModel",
    "exit_layer",
    "is_exit_prepared",
    "run_early_exit",
]


def run_early_exit(network: PreTrainedModel, count: int, static: bool) -> tuple[Model, Model]:
    """A network and the early exit after its first layers, as the large and the small model of a pair.

    Args:
        network: as for :class:`~bild.models.EagerModel`.
        count: decoder layers of the small model, 1 … layers − 1.
        static: whether to compile them; what cannot be compiled runs uncompiled, after one warning.

    Raises:
        LoadError: see :class:`SplitModel`.
    """
    eager = SplitModel(network, count)
    if static:
        small = CompiledExitModel(eager.small)
        large = CompiledSplitModel(eager, small) if small.is_compiled else None
        if large is not None and large.is_compiled:
            return large, small
    return eager, eager.small


def is_exit_prepared(network: PreTrainedModel, count: int) -> bool:
    """Whether running this exit compiled would compile nothing."""
    return is_prepared(network, last_graph(count))
