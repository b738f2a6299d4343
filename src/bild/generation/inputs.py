"""What a call may be given: one input or many, as text, conversations or token ids in any form tokenizers return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch

from bild.errors import InputError

Conversation = Sequence[Mapping[str, Any]]
Input = str | Conversation | Sequence[int]

ALLOWED = "give text, a list of texts, conversations, or token ids"


@contextmanager
def of_input(index: int, *, alone: bool) -> Iterator[None]:
    """Name the input in what goes wrong with it, so that the caller can leave it out.

    Args:
        index: its place in the call, from 0.
        alone: whether it is the only one, which needs no number.
    """
    try:
        yield
    except InputError as error:
        if alone:
            raise
        raise InputError(f"input {index} (counted from 0): {error}") from None


def as_list(inputs: Any, attention_mask: Any = None, pad: int | None = None) -> tuple[list[Input], bool]:
    """One input or many as a list, and whether it was one.

    Args:
        inputs: a text; a list of texts, conversations or token id lists; a tensor or array ``[B, T]`` or
            ``[T]``; or what a tokenizer returns.
        attention_mask: of token ids, of the same shape; false or 0 where they are padding.
        pad: token that is taken for padding at both ends of the rows of a table without a mask; None: none is.

    Raises:
        InputError: something else.
    """
    if isinstance(inputs, Mapping):
        if "input_ids" not in inputs:
            raise InputError(
                f"a dict needs input_ids, this one has {', '.join(map(str, inputs)) or 'nothing'}; {ALLOWED}"
            )
        return as_list(inputs["input_ids"], inputs.get("attention_mask", attention_mask), pad)
    if isinstance(inputs, str):
        _no_mask(attention_mask)
        return [inputs], True
    if isinstance(inputs, torch.Tensor | np.ndarray) and inputs.ndim == 0:
        raise InputError(f"cannot decode a single number; {ALLOWED}")
    # A set has no order.
    none = isinstance(inputs, bytes | bytearray | memoryview | set | frozenset)
    if none or not isinstance(inputs, Iterable):
        raise InputError(f"cannot decode {described(inputs)}; {ALLOWED}")
    items = _plain(inputs) if isinstance(inputs, torch.Tensor | np.ndarray) else [_plain(item) for item in inputs]
    if items and (_is_id(items[0]) or _is_turn(items[0])):
        return _unpadded([items], None if attention_mask is None else [_row(attention_mask)], None), True
    return _rows(items, attention_mask, pad), False


def described(item: Any) -> str:
    """What something is, for an error message."""
    if item is None or (isinstance(item, float) and item != item):
        return f"a missing value ({item})"
    if isinstance(item, bytes | bytearray | memoryview):
        return "bytes (decode them first, as in data.decode('utf-8'))"
    kind = type(item).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def _rows(items: list[Any], mask: Any, pad: int | None) -> list[Input]:
    with_masks = [item if isinstance(item, Mapping) and "input_ids" in item else None for item in items]
    if items and all(each is not None for each in with_masks):
        # As a dataset of tokenized texts has them.
        return [_alone(index, item) for index, item in enumerate(items)]
    masks = None if mask is None else [_row(row) for row in _table(mask)]
    return _unpadded(items, masks, pad if _is_table(items) else None)


def _alone(index: int, item: Mapping[str, Any]) -> Input:
    with of_input(index, alone=False):
        rows, _ = as_list(item)
        if len(rows) != 1:
            raise InputError(f"its input_ids hold {len(rows)} rows; give one")
        return rows[0]


def _unpadded(items: list[Any], masks: list[list[bool]] | None, pad: int | None) -> list[Input]:
    if masks is not None and len(masks) != len(items):
        raise InputError(f"attention_mask has {len(masks)} rows for {len(items)} inputs; give one for each")
    if masks is None:
        return items if pad is None else [_stripped(item, pad) for item in items]
    rows: list[Input] = []
    for index, (item, kept) in enumerate(zip(items, masks, strict=True)):
        with of_input(index, alone=len(items) == 1):
            rows.append(_kept(item, kept))
    return rows


def _kept(item: Any, kept: list[bool]) -> list[int]:
    if not isinstance(item, list) or not all(map(_is_id, item)):
        _no_mask(kept)
    if len(kept) != len(item):
        raise InputError(f"attention_mask has {len(kept)} places for {len(item)} tokens; give one for each")
    return [id for id, keep in zip(item, kept, strict=True) if keep]


def _stripped(row: list[int], pad: int) -> list[int]:
    real = [place for place, id in enumerate(row) if id != pad]
    return row[real[0] : real[-1] + 1] if real else []


def _is_table(items: list[Any]) -> bool:
    """Whether these are several rows of token ids of one length, as padding makes them."""
    lists = all(isinstance(item, list) and item and all(map(_is_id, item)) for item in items)
    return len(items) > 1 and lists and len({len(item) for item in items}) == 1


def _table(mask: Any) -> list[Any]:
    rows = _plain(mask)
    if not isinstance(rows, list | tuple):
        raise InputError(f"attention_mask is {described(mask)}; give a list, an array or a tensor of 0 and 1")
    return list(rows)


def _row(mask: Any) -> list[bool]:
    row = _table(mask)
    if len(row) == 1 and isinstance(_plain(row[0]), list):
        row = _plain(row[0])
    values = [_plain(value) for value in row]
    if not all(isinstance(value, bool | int | float) for value in values):
        raise InputError("attention_mask holds something other than 0 and 1; give it in the shape of the token ids")
    return [bool(value) for value in values]


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists, other things as they are."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _no_mask(mask: Any) -> None:
    if mask is not None:
        raise InputError("attention_mask goes with token ids, and this is text; leave it out")


def _is_id(value: Any) -> bool:
    return isinstance(value, Integral)


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and "input_ids" not in value
