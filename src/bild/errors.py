"""Every error a user can meet, as one tree.

BildError                   catch this to catch all of them
├── InputError              a text, file or option that cannot be used: what came, what is allowed
├── LoadError               a checkpoint that cannot be loaded or cannot decode
├── ScoreError              a model whose scores are not numbers (NaN)
└── VocabularyError         two checkpoints that do not share a vocabulary
"""

from __future__ import annotations


class BildError(Exception):
    """Base of all errors raised for a user's mistake; the message is one line."""


class InputError(BildError, ValueError):
    """A text, file or option that cannot be used."""


class LoadError(BildError):
    """A checkpoint that cannot be loaded, or whose model cannot decode with rollback."""


class ScoreError(BildError, ArithmeticError):
    """A model's scores are not numbers, so nothing can be decoded from them."""


class VocabularyError(BildError, ValueError):
    """Two checkpoints that do not share a vocabulary."""


def one_line(error: BaseException) -> str:
    """What some other library raised, without its pages: kind and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
