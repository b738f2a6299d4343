"""What sources have in common on every runtime."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_of(sources: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """Each source once, and of every one which of them it is: several texts may be asked for of one.

    Args:
        sources: encoder input ids, one list a row.
    """
    numbers: dict[tuple[int, ...], int] = {}
    of_rows = [numbers.setdefault(tuple(source), len(numbers)) for source in sources]
    return [list(source) for source in numbers], of_rows
