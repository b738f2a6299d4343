"""Texts that grow past the length at which a model's rotary frequencies change (:mod:`bild.models.rope`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bild.decoding.scorer import Scorer, copied
from bild.decoding.scores import Scores, Summary
from bild.models.passes import check_last

Tokens = Sequence[Sequence[int]]


class LongScorer:
    """Reads a text anew when it crosses the switch, in either direction; see :class:`bild.decoding.Scorer`.

    So a text is scored at every length as transformers scores it: with the frequencies of that length throughout.

    Args:
        scorer: reads rows with the frequencies of the length they have after a pass.
        switch: tokens of the longest text that uses the first set of frequencies.
    """

    def __init__(self, scorer: Scorer, switch: int) -> None:
        self._scorer, self._switch = scorer, switch
        self._texts: list[list[int]] = [[] for _ in scorer.lengths]
        # Whether what the scorer has read of a row was read as a long text.
        self._long = [False] * len(self._texts)

    @property
    def lengths(self) -> list[int]:
        return [len(text) for text in self._texts]

    def extend(self, tokens: Tokens, last: int = 1) -> Tensor:
        check_last(tokens, last)
        counts = [max(0, self._switch - len(text)) for text in self._texts]
        near = [list(new[:count]) for new, count in zip(tokens, counts, strict=True)]
        far = [list(new[count:]) for new, count in zip(tokens, counts, strict=True)]
        scored = [self._read(part, last) for part in (near, far) if any(part)]
        if len(scored) == 1:
            return scored[0]
        rows = zip(scored[0], scored[1], far, strict=True)
        return torch.stack([_behind(before, behind, len(new)) for before, behind, new in rows])

    def summarize(self, tokens: Tokens, last: int = 1) -> tuple[Tensor, Summary]:
        return Scores.of(self.extend(tokens, last))

    def truncate(self, lengths: Sequence[int]) -> None:
        for text, length in zip(self._texts, lengths, strict=True):
            del text[length:]
        self._scorer.truncate(lengths)

    def keep(self, rows: Sequence[int]) -> None:
        self._scorer.keep(rows)
        self._texts = [list(self._texts[b]) for b in rows]
        self._long = [self._long[b] for b in rows]

    def join(self, other: LongScorer) -> None:
        self._scorer.join(other._scorer)
        self._texts += other._texts
        self._long += other._long

    def copy(self, rows: Sequence[int]) -> LongScorer | None:
        """See :class:`~bild.decoding.scorer.Copying`."""
        scorer = copied(self._scorer, rows)
        if scorer is None:
            return None
        other = LongScorer(scorer, self._switch)
        other._texts = [list(self._texts[b]) for b in rows]
        other._long = [self._long[b] for b in rows]
        return other

    def _read(self, tokens: Tokens, last: int) -> Tensor:
        """Read new tokens that lie, in each row, on one side of the switch."""
        for text, new in zip(self._texts, tokens, strict=True):
            text += new
        long = [len(text) > self._switch if new else was for text, new, was in self._each(tokens)]
        texts = zip(self._texts, self._long, long, strict=True)
        self._scorer.truncate([len(text) if was == is_long else 0 for text, was, is_long in texts])
        self._long, known = long, self._scorer.lengths
        unread = [text[at:] if new else [] for (text, new, _), at in zip(self._each(tokens), known, strict=True)]
        scored = self._scorer.extend(unread, min(last, max(map(len, unread))))
        missing = scored.new_zeros(len(scored), last - scored.shape[1], scored.shape[2])
        return torch.cat([missing, scored], dim=1)

    def _each(self, tokens: Tokens) -> zip[tuple[list[int], Sequence[int], bool]]:
        return zip(self._texts, tokens, self._long, strict=True)


def _behind(near: Tensor, far: Tensor, count: int) -> Tensor:
    """Scores ``[K, V]`` of a row's last K tokens, ``count`` of which were read beyond the switch; right-aligned."""
    count = min(count, len(far))
    return torch.cat([near[count:], far[len(far) - count :]])
