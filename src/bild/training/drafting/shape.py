"""What of a large model a drafter is made of, as the user asks for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from bild.errors import InputError
from bild.models.parallel import MOST_AT_ONCE

CHOICES = ("auto", "even", "measured")
READS = ("tokens", "states")
DEFAULT_LIST = 8192
"""Tokens of a short list where nobody says how many."""
LARGE_VOCABULARY = 2 * DEFAULT_LIST
"""Tokens from which on a list of that many is made."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Layers and tokens of a drafter.

    Args:
        layers: how many decoder layers, ``"4"``, or which, counted from 1: ``"1,12,30"``. Empty: 4, or 1.
        choose: how so many are chosen: ``"even"``: at equal distances, the first and the last among them;
            ``"measured"``: those without which the large model's output changes most; ``"auto"``: whichever of the two
            comes nearer to the large model before anything is trained.
        encoder_layers: likewise of an encoder, always at equal distances; None: it is the large model's and stays so,
            which then encodes for both.
        head_vocabulary: tokens that are ever drafted, the most frequent ones of what the large model writes, 1…;
            0: all. None: 8192 where the vocabulary has more than twice as many, else all.
        reads: ``"tokens"``, or ``"states"``: of the large model, too (:mod:`bild.models.on_states`); so many layers are
            then its last ones.
        at_once: tokens that one pass drafts, 1 to 16 (:mod:`bild.models.parallel`); more than one where it reads
            states.

    Raises:
        InputError: a value out of range.
    """

    layers: str = ""
    choose: str = "auto"
    encoder_layers: str | None = None
    head_vocabulary: int | None = None
    reads: str = "tokens"
    at_once: int = 1

    def __post_init__(self) -> None:
        if not self.layers:
            object.__setattr__(self, "layers", "1" if self.reads == "states" else "4")
        for name in ("layers", "encoder_layers"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[0-9]+(,[0-9]+)*", value):
                raise InputError(f"{name} is {value!r}; write how many (4), or which, counted from 1 (1,12,30)")
        if self.reads not in READS:
            raise InputError(f"reads is {self.reads!r}; allowed are {', '.join(READS)}")
        if not 1 <= self.at_once <= MOST_AT_ONCE:
            raise InputError(f"at_once is {self.at_once}; allowed is 1 to {MOST_AT_ONCE}")
        if self.at_once > 1 and self.reads != "states":
            raise InputError(
                f"at_once is {self.at_once}, and a drafter that reads tokens writes one; give reads=states"
            )
        if self.choose not in CHOICES:
            raise InputError(f"choose is {self.choose!r}; allowed are {', '.join(CHOICES)}")
        if self.choose != "auto" and "," in self.layers:
            raise InputError(f"layers are named ({self.layers}), and choose is {self.choose!r}; give one of the two")
        if self.head_vocabulary is not None and self.head_vocabulary < 0:
            raise InputError(
                f"head_vocabulary is {self.head_vocabulary}; allowed is 1 or more, or 0 for the whole head"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = (
            "layers",
            "choose",
            "encoder_layers",
            "head_vocabulary",
            # Not where they are as they always were: folders of earlier runs go on.
            *(["reads"] if self.reads != READS[0] else []),
            *(["at_once"] if self.at_once > 1 else []),
        )
        return {name: getattr(self, name) for name in names}

    def list_size(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> int | None:
        """Tokens of the short list, None where there is none.

        Args:
            tokenizer: whose special tokens it always holds.
            vocab_size: rows of the large model's head.

        Raises:
            InputError: fewer than the special tokens, or more than there are.
        """
        size = self.head_vocabulary
        if size is None:
            size = DEFAULT_LIST if vocab_size > LARGE_VOCABULARY else 0
        special = len(special_ids(tokenizer, vocab_size))
        if size > vocab_size or 0 < size <= special:
            raise InputError(
                f"head_vocabulary is {size}; it holds the {special} special tokens and at least one more of "
                f"{vocab_size}; allowed is {special + 1} to {vocab_size}, or 0 for the whole head"
            )
        return None if size in (0, vocab_size) else size


def special_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> set[int]:
    """Tokens that steer a text rather than stand in it: they end it, or a turn."""
    return {id for id in tokenizer.all_special_ids if id is not None and id < vocab_size}


def which_layers(asked: str, total: int, what: str = "layers") -> list[int] | int:
    """Layers that are named, from 0; or how many are to be chosen.

    Raises:
        InputError: some that are not there, or none to drop.
    """
    numbers = [int(number) for number in asked.split(",")]
    if len(numbers) == 1:
        if not 1 <= numbers[0] <= total:
            raise InputError(f"{what} is {asked}, and the large model has {total}; allowed is 1 to {total}")
        return numbers[0]
    wrong = [number for number in numbers if not 1 <= number <= total]
    if wrong or sorted(set(numbers)) != numbers:
        said = f"there is no layer {wrong[0]}" if wrong else "they are not in ascending order"
        raise InputError(f"{what} are {asked}: {said}; allowed are different ones of 1 to {total}, in their order")
    return [number - 1 for number in numbers]


def spaced(count: int, total: int) -> list[int]:
    """So many of ``total`` layers at equal distances, from 0; the first and the last among them, or the first alone."""
    if count == 1:
        return [0]
    return [round(at * (total - 1) / (count - 1)) for at in range(count)]


def written(layers: Sequence[int]) -> str:
    """Layers as they are written down: ``"1, 12, 30"``."""
    return ", ".join(str(index + 1) for index in layers)
