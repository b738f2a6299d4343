"""Words of any script, for metrics that count them."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

ASCII_WORD = re.compile("[a-z0-9]+")
UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Tibetan, Burmese, Khmer
    "\u3005-\u3007\u3040-\u312f\u31f0-\u31ff"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""Scripts that put no spaces between words."""
SHORT = 3
"""Letters of a word that is not stemmed, at most."""


def words(text: str) -> list[str]:
    """The words of a text in small letters, English ones stemmed; in scripts without spaces every character is one.

    Of ASCII text these are the tokens of Google's ``rouge-score`` with stemming. That library takes every other
    letter for a space: it sees no word in Russian, Chinese or Arabic, and two in "läuft".
    """
    if text.isascii():
        found = ASCII_WORD.findall(text.lower())
    else:
        found = _word().findall(unicodedata.normalize("NFKC", text).lower())
    return [_stemmer().stem(word) if len(word) > SHORT and word.isascii() else word for word in found]


def is_unspaced(texts: Iterable[str]) -> bool:
    """Whether most letters of these texts are of a script without spaces between words."""
    unspaced = letters = 0
    for text in texts:
        if not text.isascii():
            unspaced += len(_unspaced().findall(text))
        letters += sum(map(str.isalpha, text))
    return 2 * unspaced > letters


@cache
def _unspaced() -> re.Pattern[str]:
    return re.compile(f"[{UNSPACED}]")


@cache
def _word() -> re.Pattern[str]:
    marks = "".join(filter(_is_mark, map(chr, range(0x300, sys.maxunicode + 1))))
    return re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])(?:[^\W_]|[{marks}]))+")


def _is_mark(character: str) -> bool:
    """Vowel signs and accents of their own are part of a word, and no letters to Python's ``\\w``."""
    return unicodedata.category(character) in ("Mn", "Mc")


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
