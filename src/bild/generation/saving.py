"""A loaded pair as a folder: its checkpoints, its tokenizer and its policy."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from bild.decoding import Recipe
from bild.errors import InputError
from bild.generation.pair import Pair
from bild.models import ROUNDED, EnsembleModel, short_list_of

if TYPE_CHECKING:
    from bild.generation.decoder import BigLittleDecoder


def save_pair(decoder: BigLittleDecoder, folder: str | os.PathLike[str]) -> None:
    """See :meth:`BigLittleDecoder.save_pretrained`.

    Raises:
        InputError: a pair that a folder cannot hold.
    """
    if not isinstance(decoder.drafter, Recipe):
        raise InputError("the drafter is a function, which a folder does not hold; give one by name to save it")
    if isinstance(decoder.large, EnsembleModel):
        raise InputError("the large model is an ensemble, which a folder does not hold; save and name its parts")
    if decoder.dtype in ROUNDED:
        raise InputError(
            f"dtype is {decoder.dtype}, which checkpoints do not hold; load the pair in another dtype to save it"
        )

    def save(network: Any, side: str) -> str:
        return _save(network, decoder.tokenizer, Path(folder) / side)

    _, *small = decoder.models
    large = save(decoder.large.network, "large")
    cheap = save(small[0].network, "small") if small and decoder.early_exit is None else decoder.early_exit
    pair = Pair(large, cheap, decoder.policy, drafter=str(decoder.drafter))
    if (middle := decoder._middle) is not None:
        name = save(middle.model.network, "middle") if middle.part is None else middle.part
        pair = replace(pair, middle=name, middle_window=middle.window)
    pair.save(folder)


def _save(network: Any, tokenizer: PreTrainedTokenizerBase | None, place: Path) -> str:
    if short_list_of(network) is not None:
        raise InputError(
            f"the small model's head was shortened when it was loaded ({network.name_or_path}), and its other rows "
            "are not there to be saved; name that folder in a bild.json instead (bild tune --save does)"
        )
    network.save_pretrained(place)
    if tokenizer is not None:
        tokenizer.save_pretrained(place)
    return str(place)
