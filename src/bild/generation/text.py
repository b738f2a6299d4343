"""From committed tokens back to text, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"
"""What tokenizers print for a character whose bytes have not all come yet."""


def decode(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> str:
    """The text of these tokens without special ones; empty where there is no tokenizer."""
    if tokenizer is None:
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


class TextStream:
    """Grows a text token by token and hands out what can no longer change.

    The pieces joined are the text of all tokens: a character whose bytes are split over tokens
    waits for its last byte, and a space for what it separates.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, ids: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.sent = decode(tokenizer, self.ids)

    def add(self, tokens: Iterable[int]) -> str:
        """The text these tokens settle, maybe empty."""
        self.ids.extend(tokens)
        return self._settle(decode(self.tokenizer, self.ids).rstrip(INCOMPLETE))

    def end(self) -> str:
        """Whatever is still held back."""
        return self._send(decode(self.tokenizer, self.ids))

    def _settle(self, text: str) -> str:
        if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            # Such a tokenizer joins "word ." to "word.", so the last space and what follows may still change.
            text = text[: text.rindex(" ")] if " " in text else ""
        return self._send(text)

    def _send(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        new, self.sent = text[len(self.sent) :], text
        return new


def pieces(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    """The text each token adds after ``context``; special tokens by their name.

    A character spread over tokens belongs to the one that completes it, so joining the pieces
    of ordinary tokens gives their text.
    """
    if tokenizer is None:
        return [str(id) for id in ids]
    special = set(tokenizer.all_special_ids)
    stream = TextStream(tokenizer, context)
    return [str(tokenizer.convert_ids_to_tokens(id)) if id in special else stream.add([id]) for id in ids]
