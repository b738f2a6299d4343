"""Re-translation: a source that grows, translated anew each time, with the translation before as the draft.

Biased re-translation (Self-Speculative Biased Decoding, arXiv 2509.21740): the large model reads the translation before
in one pass as if its tokens were a little likelier than they are, ``P' = (1 - β) P + β · onehot(d)``. So a token stays
while it is the likeliest under ``P'``, which is ``max P - P(d) ≤ β / (1 - β)``, our distance ``margin``; from the first
that does not stay on the large model writes plainly. At ``β = 0`` the texts are those of plain re-translation.

Ours: the end token is left out of the draft, as a source that has grown mostly ends later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bild.decoding import FixedWindow, Policy, Replay, WithinDistance
from bild.decoding.common import common
from bild.errors import InputError, check_count
from bild.generation.decoder import BigLittleDecoder
from bild.generation.result import Result
from bild.generation.text import decode

PIECE = 60
"""Draft tokens that are read in one pass; a longer translation is read in pieces."""
DEFAULT_BETA, DEFAULT_MASK = 0.2, 3


@dataclass(frozen=True)
class Revision:
    """The translation of a source that is not whole yet."""

    result: Result
    """All that was written, the hidden tail included."""
    shown: tuple[int, ...]
    """Tokens that are shown: all but the last few, unless the source is whole."""
    text: str
    """Of the tokens that are shown."""
    erased: int
    """Tokens that were shown before and are not any more."""


@dataclass
class Retranslator:
    """Translates one source as it grows; a new source wants a new one.

    Args:
        decoder: its large model translates; no small model is asked.
        beta: how much is left of the translation before, 0 (nothing: plain re-translation) … below 1, default 0.2;
            higher = faster and steadier, further from large.
        mask: tokens at the end that are not shown until the source is whole, 0…, default 3, the paper's.
        options: of :meth:`~bild.BigLittleDecoder.generate`, but not to draw tokens.

    Raises:
        InputError: a value out of range, or a pair with a middle model, which would have a say in what stays.
    """

    decoder: BigLittleDecoder
    beta: float = DEFAULT_BETA
    mask: int = DEFAULT_MASK
    options: dict[str, Any] = field(default_factory=dict)
    revisions: list[Revision] = field(default_factory=list)
    """All so far."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise InputError(f"beta is {self.beta}; allowed is 0 or more and below 1")
        check_count("mask", self.mask, least=0)
        if getattr(self.decoder, "middle", None) is not None:
            raise InputError("the pair has a middle model, and re-translation has no place for it; name one without")
        if self.options.get("do_sample"):
            raise InputError("re-translation takes the likeliest tokens; leave do_sample out")

    @property
    def policy(self) -> Policy:
        """What stays of the translation before."""
        near = WithinDistance(self.beta / (1 - self.beta), "margin")
        return Policy(hand_over=FixedWindow(), acceptance=near, max_draft_tokens=PIECE, verify_end=True)

    def update(self, source: Any, *, whole: bool = False) -> Revision:
        """Translate what there is of the source.

        Args:
            source: one input as for :meth:`~bild.BigLittleDecoder.generate`: all of it so far.
            whole: whether it is at its end; then nothing is hidden.
        """
        before = self._written()
        drafter = Replay([before], realign=False)
        options = {**self.options, "drafter": lambda kit: drafter}
        (result,) = self.decoder.generate(source, self.policy, **options)
        shown = visible(result, 0 if whole else self.mask, whole=whole)
        last = self.revisions[-1].shown if self.revisions else ()
        text = result.text if whole else decode(self.decoder.tokenizer, list(shown))
        revision = Revision(result, shown, text, len(last) - common(last, shown))
        self.revisions.append(revision)
        return revision

    @property
    def flicker(self) -> float:
        """Normalised erasure: tokens that were shown and taken back / tokens of the last translation."""
        return flicker([each.shown for each in self.revisions])

    @property
    def num_large_steps(self) -> int:
        """Passes of the large model over all revisions."""
        return sum(each.result.stats.num_large_steps for each in self.revisions)

    @property
    def seconds(self) -> float:
        """Over all revisions."""
        return sum(each.result.total_s for each in self.revisions)

    def _written(self) -> list[int]:
        if not self.revisions:
            return []
        return list(visible(self.revisions[-1].result, 0))


def visible(result: Result, mask: int, *, whole: bool = False) -> tuple[int, ...]:
    """Tokens that are shown of a translation.

    Args:
        result: the translation.
        mask: tokens before the end token that are hidden.
        whole: whether its source is at its end; then the end token counts, too.
    """
    length = len(result.token_ids) - (result.finish_reason == "eos" and not whole)
    return tuple(result.token_ids[: max(0, length - mask)])


def flicker(shown: Sequence[Sequence[int]]) -> float:
    """Normalised erasure of what was shown one after the other: tokens taken back / tokens of the last."""
    erased = sum(len(one) - common(one, then) for one, then in pairwise(shown))
    return erased / max(1, len(shown[-1])) if shown else 0.0


def revealed(text: str, words: int = 1) -> Iterator[str]:
    """A source as it grows, some words at a time; at last the whole. What is blank has not begun."""
    pieces = text.split(" ")
    for end in range(words, len(pieces), words):
        begun = " ".join(pieces[:end])
        if begun.strip():
            yield begun
    yield text


def retranslate(
    decoder: BigLittleDecoder,
    sources: Iterable[Any],
    *,
    beta: float = DEFAULT_BETA,
    mask: int = DEFAULT_MASK,
    **options: Any,
) -> Retranslator:
    """Translate a source as it grows; see :class:`Retranslator`.

    Args:
        decoder: of the pair.
        sources: all of the source so far, each time it has grown; the last is the whole.
        beta: see :class:`Retranslator`.
        mask: likewise.
        options: likewise.

    Raises:
        InputError: no source, or a value out of range.
    """
    live, items = Retranslator(decoder, beta, mask, options), list(sources)
    if not items:
        raise InputError("there is no source to translate; give at least one")
    for at, source in enumerate(items, start=1):
        live.update(source, whole=at == len(items))
    return live
