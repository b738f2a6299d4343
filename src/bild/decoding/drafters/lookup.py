"""Where n-grams stand in a text that grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Which = Literal["latest", "first"]


class Index:
    """Where each n-gram of a text ends, kept up as the text grows; a dictionary entry a token and length.

    Args:
        shortest: n-gram, in tokens, at least 1.
        longest: n-gram, in tokens.
        which: of several places: ``"latest"`` or ``"first"``.
    """

    def __init__(self, shortest: int, longest: int, which: Which = "latest") -> None:
        self.shortest, self.longest, self.which = shortest, longest, which
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def extend(self, tokens: Sequence[int], length: int) -> None:
        """Take ``tokens[:length]`` into account, of which earlier calls have seen the beginning.

        An n-gram counts once a token follows it: what nothing follows is of no use, and the end of the text would
        otherwise find itself.
        """
        for end in range(self._known + 1, length):
            for size in range(self.shortest, min(self.longest, end) + 1):
                ngram = tuple(tokens[end - size : end])
                if self.which == "latest":
                    self._ends[ngram] = end
                else:
                    self._ends.setdefault(ngram, end)
        self._known = max(self._known, length - 1)

    def find(self, tokens: Sequence[int], size: int) -> int | None:
        """Where the n-gram that the last ``size`` of these tokens make ends in the text; None if it is not there."""
        return self._ends.get(tuple(tokens[-size:])) if size <= len(tokens) else None
