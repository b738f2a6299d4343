"""The text of each token while a text is written."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from bild.generation.text import Growing, Vocabulary, cleaned, cleans


class TokenStream:
    """The text of each token while they are written; joined, those of ordinary tokens are the text.

    A character spread over tokens belongs to the one that completes it, and a special token has none.

    Args:
        tokenizer: of the pair; None: tokens have their ids for a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._growing = None if tokenizer is None else Growing(Vocabulary.of(tokenizer))
        self._cleans = cleans(tokenizer)
        self._special: list[bool] = []
        """Of tokens that are not handed out, in order, whether they are."""
        self._texts: list[str] = []
        """Of the first of them: those that are settled."""

    def add(self, tokens: Iterable[int]) -> list[tuple[str, bool]]:
        """The next tokens in order that are settled, earlier ones first: text, and whether they are special."""
        for token in tokens:
            self._special.append(self._growing is not None and self._growing.vocabulary.is_silent(token))
            self._settle([str(token)] if self._growing is None else self._growing.add(token))
        return self._hand_out(self._ready())

    def end(self) -> list[tuple[str, bool]]:
        """All that are left."""
        self._settle([] if self._growing is None else self._growing.end())
        return self._hand_out(len(self._texts))

    def _settle(self, texts: Iterable[str]) -> None:
        self._pass_special()
        for text in texts:
            self._texts.append(text)
            self._pass_special()

    def _pass_special(self) -> None:
        while len(self._texts) < len(self._special) and self._special[len(self._texts)]:
            self._texts.append("")

    def _ready(self) -> int:
        if not self._cleans:
            return len(self._texts)
        # What is before the space a token begins with, and what is behind, can be cleaned apart.
        raw = "".join(self._texts)
        behind = len(raw)
        for at in range(len(self._texts) - 1, 0, -1):
            behind -= len(self._texts[at])
            if self._texts[at].startswith(" ") and not raw[:behind].endswith(" '"):
                return at
        return 0

    def _hand_out(self, upto: int) -> list[tuple[str, bool]]:
        ready, special = self._texts[:upto], self._special[:upto]
        del self._texts[:upto], self._special[:upto]
        if self._tokenizer is not None and self._cleans:
            ready = cleaned(self._tokenizer, ready)
        return list(zip(ready, special, strict=True))
