"""Two networks with one encoder, as a drafter that is made of a large model's decoder layers has: a source is read
once, and both decoders look it up.

:mod:`.comparing` tells whether it is one, :mod:`.eager` and :mod:`.compiled` are the runtimes.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from bild.models.eager import EagerModel
from bild.models.one_encoder.comparing import have_one_encoder
from bild.models.one_encoder.compiled import CompiledBorrower, CompiledLender, is_pair_prepared
from bild.models.one_encoder.eager import EagerBorrower
from bild.models.protocol import Model

__all__ = [
    "CompiledBorrower",
    "CompiledLender",
    "EagerBorrower",
    "borrows_encoder",
    "have_one_encoder",
    "is_pair_prepared",
    "run_one_encoder",
]


def run_one_encoder(large: PreTrainedModel, small: PreTrainedModel, static: bool) -> tuple[Model, Model]:
    """Both models of a pair whose networks have one encoder.

    Args:
        large: as for :class:`~bild.models.EagerModel`.
        small: likewise.
        static: whether to compile them; what cannot be compiled runs uncompiled, after one warning.

    Raises:
        LoadError: see :class:`~bild.models.EagerModel`.
    """
    if static:
        lender = CompiledLender(large, small)
        borrower = CompiledBorrower(small, lender) if lender.is_compiled else None
        # What both look up stands in the places of its rows for both, or for neither.
        if borrower is not None and borrower.is_compiled and borrower.graphs.has_places == lender.graphs.has_places:
            return lender, borrower
    return EagerModel(large), EagerBorrower(small, large)


def borrows_encoder(model: Model) -> bool:
    """Whether a small model looks up what the large model's encoder has made of sources."""
    return isinstance(model, CompiledBorrower | EagerBorrower)
