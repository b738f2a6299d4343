"""Prompt lookup: what followed the last few tokens when they stood there before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bild.decoding.drafters.certain import Certain
from bild.decoding.drafters.lookup import Index, Which
from bild.decoding.rows import Row

LookIn = Literal["text", "source", "both"]
PLACES: dict[str, tuple[str, ...]] = {"text": ("text",), "source": ("source",), "both": ("source", "text")}
WHICH = ("latest", "first")


@dataclass(frozen=True, kw_only=True)
class NGram(Certain):
    """Proposes what followed the last tokens of a row where they stood before; needs no model.

    The longest n-gram that is found counts; of equally long ones that in the source, from which the text may be a
    copy. A copy of the text may run into itself, so that a period goes on for ever. Nothing found: an empty draft.

    Args:
        window: longest draft in tokens, 1…; None: as long as the row's policy allows.
        longest: n-gram that is looked for, in tokens, ``shortest``…
        shortest: likewise, 1…; shorter ones are found more often and are more often wrong.
        look_in: ``"text"``: the prompt and what is written; ``"source"``: what the encoder reads, where both sides
            share a vocabulary; ``"both"``.
        which: of several places: ``"latest"`` or ``"first"``.
        vocab_size: ids that it proposes are below; None: any.

    Raises:
        ValueError: a value out of range.
    """

    window: int | None = None
    longest: int = 4
    shortest: int = 2
    look_in: LookIn = "both"
    which: Which = "latest"
    vocab_size: int | None = None

    name = "ngram"

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; allowed is 1 or more")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest is {self.shortest} and longest is {self.longest}; allowed is 1 ≤ shortest ≤ longest"
            )
        if self.look_in not in PLACES:
            raise ValueError(f"look_in is {self.look_in!r}; allowed are {', '.join(PLACES)}")
        if self.which not in WHICH:
            raise ValueError(f"which is {self.which!r}; allowed are {', '.join(WHICH)}")

    def propose(self, row: Row) -> Iterator[int]:
        found = self._find(row)
        if found is None:
            return
        text, at = found
        end = None if self.window is None else at + self.window
        # Of the row's own text the draft is part as it grows.
        while at < len(text) and at != end and (self.vocab_size is None or text[at] < self.vocab_size):
            yield text[at]
            at += 1

    def _find(self, row: Row) -> tuple[Sequence[int], int] | None:
        """The text in which the row's last tokens stand, and where they end there."""
        indices: dict[str, Index] = row.memory.setdefault(self, {})
        texts: dict[str, Sequence[int]] = {"source": row.request.source, "text": row.tokens}
        texts = {place: texts[place] for place in PLACES[self.look_in] if texts[place]}
        for place, text in texts.items():
            index = indices.setdefault(place, Index(self.shortest, self.longest, self.which))
            index.extend(text, row.committed if place == "text" else len(text))
        for size in range(self.longest, self.shortest - 1, -1):
            for place, text in texts.items():
                if (at := indices[place].find(row.tokens, size)) is not None:
                    return text, at
        return None
