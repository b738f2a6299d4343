"""Every error a user can meet, as one tree.

BildError                   catch this to catch all of them
├── BusyError               more is asked of an engine than may wait; try again later
├── InputError              a text, file or option that cannot be used: what came, what is allowed
│   └── TooLongError        a text that the models, or the memory set aside for them, have no room for
├── LoadError               a checkpoint that cannot be loaded or cannot decode
├── ScoreError              a model whose scores are not numbers (NaN)
├── StoppedError            an engine that takes on nothing more
├── VerifierError           a verifier elsewhere that does not answer, or not as one
└── VocabularyError         two checkpoints that do not share a vocabulary
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral


class BildError(Exception):
    """Base of all errors raised for a user's mistake; the message is one line."""


class BusyError(BildError):
    """More is asked of an engine than may wait.

    Args:
        message: one line.
        retry_after_s: when there may be room, in seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InputError(BildError, ValueError):
    """A text, file or option that cannot be used."""


class TooLongError(InputError):
    """A text that the models, or the memory set aside for them, have no room for."""


class LoadError(BildError):
    """A checkpoint that cannot be loaded, or whose model cannot decode with rollback."""


class ScoreError(BildError, ArithmeticError):
    """A model's scores are not numbers, so nothing can be decoded from them."""


class StoppedError(BildError):
    """An engine that takes on nothing more: it is being shut down, or has broken down."""


class VerifierError(BildError):
    """A verifier elsewhere that cannot be reached, refuses, or answers with what it should not."""


class VocabularyError(BildError, ValueError):
    """Two checkpoints that do not share a vocabulary."""


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Refuse what is not a whole number, or is too small a one.

    Args:
        name: of the option.
        value: what came.
        least: smallest that is allowed.

    Raises:
        InputError: it cannot be used.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} is {value!r}; allowed is {least} or more, a whole number")


def one_line(error: BaseException) -> str:
    """An error in one line: our own by its message, another library's by its kind and its first line, with the next one
    where the first only announces it."""
    if isinstance(error, BildError):
        return " ".join(str(error).split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


@contextmanager
def reading(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says while a file is read into an :class:`InputError` that names the file."""
    with _naming("read", place):
        yield


@contextmanager
def writing(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system says while a file or folder is written into an :class:`InputError` that names it."""
    with _naming("write", place):
        yield


@contextmanager
def _naming(act: str, place: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Nobody reads a pipe any more: no mistake, and whoever opened the pipe decides what it means.
        raise
    except OSError as error:
        raise InputError(f"cannot {act} {os.fspath(place)}: {reason(error)}") from None


def reason(error: OSError) -> str:
    """Why the system refused: ``"No space left on device"``."""
    return error.strerror if error.strerror else one_line(error)
