"""How likely the tokens of an answer are, in OpenAI's two shapes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from bild.decoding import Commit
from bild.decoding.likelihood import Scored
from bild.generation.text import Vocabulary
from bild.generation.token_stream import TokenStream

Show = Callable[[int], str]
"""The text that a token adds behind another one; a special one by its name."""


def shower(tokenizer: PreTrainedTokenizerBase | None) -> Show:
    """Of a tokenizer; without one tokens have numbers for names."""
    return str if tokenizer is None else Vocabulary.of(tokenizer).shown


@dataclass(frozen=True, slots=True)
class Entry:
    """A token of an answer."""

    name: str
    """Its text, or what the vocabulary calls a token that has none."""
    text: str
    """What it adds to the text: nothing for an end token, or one whose character another completes."""
    offset: int
    """Where in the text that begins, in characters."""
    scored: Scored


class Entries:
    """The tokens of a text in step with it: each comes once the text has reached its beginning.

    What a stop string cut off has none.

    Args:
        tokenizer: of the pair.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._stream, self._show = TokenStream(tokenizer), shower(tokenizer)
        self._unsettled: deque[Scored] = deque()
        self._ready: deque[Entry] = deque()
        self._length = 0

    def add(self, commit: Commit, reached: int, *, cut: bool) -> list[Entry]:
        """The entries that belong to a text of this length.

        Args:
            commit: the next one.
            reached: characters of the text that are handed out.
            cut: whether it ends there because a stop string was found.
        """
        self._unsettled += commit.scored
        ended = commit.finish_reason is not None
        for text, special in self._stream.add(commit.tokens) + (self._stream.end() if ended else []):
            own = self._unsettled.popleft()
            self._ready.append(Entry(self._show(own.token) if special else text, text, self._length, own))
            self._length += len(text)
        found = []
        while self._ready and (self._ready[0].offset < reached or (ended and not cut)):
            found.append(self._ready.popleft())
        return found


def of_completion(entries: Sequence[Entry], tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """As ``/v1/completions`` shows them: lists side by side."""
    show = shower(tokenizer)
    return {
        "tokens": [each.name for each in entries],
        "token_logprobs": [each.scored.logprob for each in entries],
        "top_logprobs": [_by_name(each, show) for each in entries],
        "text_offset": [each.offset for each in entries],
    }


def of_chat(entries: Sequence[Entry], tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """As ``/v1/chat/completions`` shows them: an object a token."""
    show = shower(tokenizer)
    content = []
    for each in entries:
        own = _object(each.name, each.scored.logprob, each.text)
        best = [
            own if token == each.scored.token else _object(name := _alternative(token, each, show), logprob, name)
            for token, logprob in each.scored.likeliest
        ]
        content.append({**own, "top_logprobs": best})
    return {"content": content, "refusal": None}


def _by_name(entry: Entry, show: Show) -> dict[str, float]:
    """The likeliest tokens and the one that was written, the likeliest first; of several with one name the first."""
    found: dict[str, float] = {}
    for token, logprob in entry.scored.likeliest:
        found.setdefault(entry.name if token == entry.scored.token else _alternative(token, entry, show), logprob)
    return found | {entry.name: entry.scored.logprob}


def _object(name: str, logprob: float, text: str) -> dict[str, Any]:
    return {"token": name, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}


def _alternative(token: int, entry: Entry, show: Show) -> str:
    """The text of another token in an entry's place."""
    text = show(token)
    # Many tokenizers leave out the space at the beginning of a text.
    return text.removeprefix(" ") if entry.offset == 0 and not entry.text.startswith(" ") else text
