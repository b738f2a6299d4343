"""Byte latent transformers (BLT, Pagnoni et al. 2024, arXiv 2412.09871), which read bytes and think in patches.

Bytes go through a small local encoder; those that belong together, by the entropy of what a patcher expects next, are
one patch, which a large global transformer reads; a small local decoder writes bytes beside the last patch that is
whole. transformers runs such a network without a cache. Here every part has one (:mod:`.row`).

Without training, its local parts are a small model for it: they go on beside the last patch that is known, past its
end, and the network then reads what they wrote in one pass (BLT-S of "Fast Byte Latent Transformer", arXiv
2605.08044). What names them is :data:`~bild.models.loading.kinds.LOCAL`.
"""

from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedModel

from bild.models.byte_latent.model import ByteModel, LocalModel
from bild.models.eager import EagerModel
from bild.models.loading.kinds import BYTE_LATENT, check_part
from bild.models.protocol import Model

__all__ = ["ByteModel", "LocalModel", "is_byte_latent", "run_byte_latent"]

logger = logging.getLogger("bild")


def run_byte_latent(large: PreTrainedModel, small: PreTrainedModel | str, static: bool) -> tuple[Model, Model]:
    """Two networks of which at least one is byte-latent, as the large and the small model of a pair.

    Args:
        large: as for :class:`~bild.models.EagerModel`.
        small: likewise, or :data:`~bild.models.loading.kinds.LOCAL`: the local parts of the large one.
        static: whether compiling is asked for: nothing is, after one warning.

    Raises:
        LoadError: see :class:`ByteModel`; or a part is named that the large model has not.
    """
    if isinstance(small, str):
        check_part(large.config, type(large).__name__, small)
    if static:
        logger.warning("byte-latent networks are not compiled: the pair runs uncompiled")
    accurate = _model(large)
    if isinstance(small, str):
        return accurate, LocalModel(large)
    return accurate, accurate if small is large else _model(small)


def is_byte_latent(network: Any) -> bool:
    """Whether a network is a byte latent transformer; a name is none."""
    return isinstance(network, PreTrainedModel) and network.config.model_type == BYTE_LATENT


def _model(network: PreTrainedModel) -> EagerModel:
    return ByteModel(network) if is_byte_latent(network) else EagerModel(network)
