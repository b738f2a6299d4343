"""Seeds of random draws: of a call, and of each of its rows."""

from __future__ import annotations

import hashlib
from numbers import Integral
from typing import Any

from bild.errors import InputError

BITS = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / golden ratio, the step of SplitMix64."""


def check_seed(seed: Any) -> None:
    """Whether a seed is one that torch takes.

    Raises:
        InputError: it is no whole number of 64 bits.
    """
    if seed is None:
        return
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not -(BITS >> 1) <= int(seed) < BITS:
        raise InputError(f"seed is {seed!r}; allowed are whole numbers of 64 bits, -2^63 to 2^64 - 1")


def digest_of(text: str) -> int:
    """A number of 64 bits that stands for a text, in place of its index, where texts come in any order."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def fold(seed: int, index: int) -> int:
    """The seed of a row: texts of one call must not share one sequence of random numbers.

    Args:
        seed: of the call, 64 bits.
        index: the row's place in the call, 0…; the first row has the seed itself.

    Returns:
        64 bits, mixed as in SplitMix64 (Steele, Lea and Flood, 2014).
    """
    if index == 0:
        return seed
    mixed = (seed + index * GOLDEN) % BITS
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % BITS
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % BITS
    return mixed ^ (mixed >> 31)
