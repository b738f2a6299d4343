"""What a pair does on texts and what its passes cost here, for simulations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bild.edge.costs import Costs, measured
from bild.edge.recording import Recording, record
from bild.engine import Models

if TYPE_CHECKING:
    from bild.generation.decoder import BigLittleDecoder

SOURCE_TOKENS = 16
"""Of the texts that passes are timed on."""


def recorded(decoder: BigLittleDecoder, texts: Sequence[str], **options: Any) -> Recording:
    """The large model's greedy texts, and which of their tokens the small one would have written.

    Args:
        decoder: the pair.
        texts: inputs.
        options: those of :meth:`~bild.BigLittleDecoder.jobs`.

    Raises:
        InputError: an input that cannot be used, or a pair without a small model.
    """
    jobs = decoder.jobs(list(texts), **options)
    names = (type(decoder.large.network).__name__, decoder.dtype)
    told = f"greedy texts of {names[0]}, {names[1]}"
    return record(Models(decoder.large, decoder.small), jobs, told)


def measured_costs(decoder: BigLittleDecoder) -> Costs:
    """What a drafted token and a pass cost here; meant for a machine that does nothing else."""
    token = decoder.large.vocab_size // 2
    source = [token] * SOURCE_TOKENS if decoder.large.is_encoder_decoder else []
    return measured(
        lambda rows: decoder.small.start([source] * rows), lambda rows: decoder.large.start([source] * rows), token
    )
