"""JSON that any reader takes, and a reader that takes nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

ESCAPED = re.compile("[\ud800-\udfff\x85\u2028\u2029]")
"""Half surrogate pairs, which UTF-8 cannot hold, and what some readers take for the end of a line."""
NO_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')
NUMBERS = {"NaN": "null", "Infinity": "1e999", "-Infinity": "-1e999"}
"""What stands for numbers that JSON lacks: every reader makes an infinity of the last two again."""


def to_json(value: Any, *, indent: int | None = None, ascii: bool = False) -> str:
    """A value as JSON text; one line without ``indent``, however its reader splits lines.

    Args:
        value: dicts with text keys, lists, tuples, texts, numbers, None. NaN becomes ``null``, infinity ``1e999``.
        indent: spaces of a nested line; None: all in one line.
        ascii: whether all other characters are escaped.
    """
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    text = ESCAPED.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
    if "NaN" in text or "Infinity" in text:
        text = NO_NUMBER.sub(lambda found: NUMBERS.get(found.group(), found.group()), text)
    return text


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: text that is not JSON, or nested deeper than Python can follow; the message says which.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError:
        raise ValueError("not JSON") from None


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, of which NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number, 0…"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
