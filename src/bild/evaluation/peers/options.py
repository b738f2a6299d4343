"""The options of a peer, from ``key=value`` text to values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bild.errors import InputError
from bild.evaluation.method import MethodSpec

Reader = Callable[[str], Any]
"""From text to a value; raises ValueError saying what is allowed."""


def read_options(spec: MethodSpec, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values of the options given; those not given are absent.

    Args:
        spec: the method as the user wrote it.
        readers: what reads each option the peer has.

    Raises:
        InputError: an option the peer does not have, or a value it does not take.
    """
    for key in spec.options:
        if key not in readers:
            raise InputError(f"method {spec.text!r}: unknown option {key}; allowed are {', '.join(readers)}")
    return {key: _read(spec, key, readers[key]) for key in spec.options}


def _read(spec: MethodSpec, key: str, reader: Reader) -> Any:
    text = spec.options[key]
    try:
        return reader(text)
    except ValueError as error:
        raise InputError(f"method {spec.text!r}: {key} is {text!r}; allowed is {error}") from None


def one_of(*allowed: str) -> Reader:
    """A reader that takes these words only."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(", ".join(allowed))
        return text

    return read


def whole_number(text: str) -> int:
    """Read a whole number, 1…"""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number from 1 on")
    return int(text)


def probability(text: str) -> float:
    """Read a number, 0…1."""
    allowed = "a number from 0 to 1"
    try:
        value = float(text)
    except ValueError:
        raise ValueError(allowed) from None
    if not 0 <= value <= 1:
        raise ValueError(allowed)
    return value
