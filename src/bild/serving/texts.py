"""A client's text while it is written: without its stop string, and nothing is ever taken back."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from bild.decoding import Commit, Hypothesis
from bild.generation.text import TextStream, decode
from bild.serving.likelihood import Entries, Entry


class Trimmer:
    """Hands a text out up to the first stop string in it; what may be the beginning of one is held back.

    Args:
        stops: none of them empty.
        keep: whether the stop string is part of the text.
    """

    def __init__(self, stops: Sequence[str] = (), *, keep: bool = False) -> None:
        self.stops, self.keep = list(stops), keep
        self.found = False
        """Whether a stop string has come; nothing is handed out any more."""
        self._held = ""

    def add(self, text: str) -> str:
        """What can be handed out of the text so far, maybe nothing."""
        if self.found:
            return ""
        self._held += text
        # The one that is complete first, however the text is cut; of several the longest.
        ends = [(at + len(stop), at) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            end, start = min(ends)
            return self._hand_out(end if self.keep else start)
        return self._hand_out(len(self._held) - max((_begun(self._held, stop) for stop in self.stops), default=0))

    def end(self) -> str:
        """Whatever is still held back."""
        return "" if self.found else self._hand_out(len(self._held))

    def _hand_out(self, upto: int) -> str:
        ready, self._held = self._held[:upto], self._held[upto:]
        return ready


def _begun(text: str, stop: str) -> int:
    """How many letters at the end of a text may be the beginning of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class Writing:
    """One text in the making, from its commits.

    Args:
        tokenizer: of the pair.
        trimmer: of its stop strings.
        scored: whether it is kept how likely its tokens are.
        live: whether its pieces are wanted as they come; else all of it is made when it has ended, in one go.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        trimmer: Trimmer,
        *,
        scored: bool = False,
        live: bool = True,
    ) -> None:
        self._tokenizer, self._trimmer = tokenizer, trimmer
        self._stream = TextStream(tokenizer) if live else None
        self._entries = Entries(tokenizer) if scored else None
        self._length = 0
        self.entries: list[Entry] = []
        """How likely its tokens are, as far as the text is handed out."""
        self.commits: list[Commit] = []
        self.tokens: list[int] = []
        self.pieces: list[str] = []

    def add(self, commit: Commit) -> str:
        """The text that a commit settles, maybe empty."""
        self.commits.append(commit)
        self.tokens += commit.tokens
        piece = self._trimmer.add(self._settled(commit))
        if commit.finish_reason is not None:
            piece += self._trimmer.end()
        self.pieces.append(piece)
        self._length += len(piece)
        if self._entries is not None:
            self.entries += self._entries.add(commit, self._length, cut=self._trimmer.found)
        return piece

    def _settled(self, commit: Commit) -> str:
        """What can no longer change, before stop strings are looked for."""
        ended = commit.finish_reason is not None
        if self._stream is None:
            return decode(self._tokenizer, self.tokens) if ended else ""
        return self._stream.add(commit.tokens) + (self._stream.end() if ended else "")

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """What a beam search has finished, this text first; empty without one."""
        return (self.commits[-1].hypotheses or ()) if self.commits else ()

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's: ``"stop"`` for an end token and a stop string alike, or ``"length"``; None: not finished."""
        reason = self.commits[-1].finish_reason if self.commits else None
        return "stop" if reason in ("eos", "stop") else reason
