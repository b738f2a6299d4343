"""A small model that reads the large one's states beside the tokens, as EAGLE does (Li et al. 2024, arXiv 2401.15077).

The large model has understood a text before the small one drafts what follows; what its head reads of each position
says more of what comes than the tokens do. A model that :mod:`.joined` marks reads, of each token, its embedding and
the large model's state of the token before; where the large model has not read so far, its own.

:mod:`.keeping` is the large side, which keeps its states as one more layer of what it stores, :mod:`.reading` the
small one; :mod:`.compiled` has both for the compiled runtime.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from bild.errors import LoadError
from bild.models.compiled import is_prepared
from bild.models.joined import add_joined, attach_joined, join_states, reads_states
from bild.models.on_states.compiled import CompiledKeepingModel, CompiledReadingModel
from bild.models.on_states.graphs import KEEPING, READING
from bild.models.on_states.keeping import KeepingModel
from bild.models.on_states.reading import ReadingModel
from bild.models.protocol import Model

__all__ = [
    "CompiledKeepingModel",
    "CompiledReadingModel",
    "KeepingModel",
    "ReadingModel",
    "add_joined",
    "attach_joined",
    "is_states_pair_prepared",
    "join_states",
    "reads_states",
    "run_on_states",
]


def run_on_states(large: PreTrainedModel, small: PreTrainedModel, static: bool) -> tuple[Model, Model]:
    """A network and one that reads its states, as the large and the small model of a pair.

    Args:
        large: as for :class:`~bild.models.EagerModel`; decoder-only.
        small: of the same width, see :func:`reads_states`.
        static: whether to compile them; what cannot be compiled runs uncompiled, after one warning.

    Raises:
        LoadError: states of another width, an encoder-decoder, or what :class:`~bild.models.EagerModel` raises.
    """
    widths = [network.config.get_text_config(decoder=True).hidden_size for network in (large, small)]
    if large.config.is_encoder_decoder:
        raise LoadError(
            f"the small model reads states, and {type(large).__name__} is an encoder-decoder; that goes with "
            "decoder-only models alone: give a small model that reads tokens"
        )
    if widths[0] != widths[1]:
        raise LoadError(
            f"the small model reads states of width {widths[1]}, and those of the large one have {widths[0]}; name the "
            "large model that it was made for"
        )
    eager = KeepingModel(large)
    if eager.switches:
        raise LoadError(
            f"{type(large).__name__} changes its positions with the length of a text, and its states cannot be read "
            "beside it; give a small model that reads tokens"
        )
    if static:
        keeping = CompiledKeepingModel(large)
        reading = CompiledReadingModel(small, keeping) if keeping.is_compiled else None
        if reading is not None and reading.is_compiled:
            return keeping, reading
    return eager, ReadingModel(small)


def is_states_pair_prepared(large: PreTrainedModel, small: PreTrainedModel) -> bool:
    """Whether running these two compiled would compile nothing."""
    return is_prepared(large, KEEPING) and is_prepared(small, READING)
