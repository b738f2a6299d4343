"""Stop strings: whether the newest token of a row completes one."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from bild.errors import InputError
from bild.generation.text import CONTEXT, LONG_PATIENCE, Vocabulary, decode, shared_start


class StopStrings:
    """Looks for stop strings at the end of a row.

    Called with all tokens of a row each time one is added. Drafts are rolled back and written anew, so nothing
    is remembered between calls; instead only so many of the last tokens are decoded as a stop string may span.

    Args:
        strings: none of them empty; special tokens are found by their names.
        tokenizer: of the pair.
        prompt_length: tokens at the beginning of a row that are not searched.

    Raises:
        InputError: the pair has no tokenizer.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase | None, prompt_length: int) -> None:
        if tokenizer is None:
            raise InputError("stop_strings need a tokenizer, and the pair has none; load one with the pair")
        self.strings, self.tokenizer, self.prompt_length = list(strings), tokenizer, prompt_length
        self.longest = max(len(string) for string in strings)
        self.vocabulary = Vocabulary.of(tokenizer)
        # A token that shows anything has a byte at least.
        self._most = 2 * max(len(string.encode("utf-8", "surrogatepass")) for string in strings) + 2 * CONTEXT

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens ends in, or within the newest token goes past, a stop string."""
        shown = self._end(tokens, skip_special_tokens=True)
        if any(string in shown for string in self.strings):
            return True
        if self.vocabulary.special.isdisjoint(tokens[max(self.prompt_length, len(tokens) - self._most) :]):
            return False
        named = self._end(tokens, skip_special_tokens=False)
        return any(string in named for string in self.strings)

    def _end(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of the last tokens, at least as long as what the newest one and a stop string before it show."""
        enough = self.longest + len(self.vocabulary.name(tokens[-1])) + CONTEXT
        count = CONTEXT + CONTEXT + self.longest // 2
        while True:
            first = self._first(tokens, count)
            window = tokens[first:]
            text = self._decode(window, skip_special_tokens)
            if first == self.prompt_length:
                return text
            # What comes first lacks its left neighbours: maybe a space, maybe part of a character.
            lead = self._decode(window[:CONTEXT], skip_special_tokens)
            text = text[shared_start(lead, text) :]
            if len(text) >= enough or count >= self._most:
                return text
            count *= 2

    def _first(self, tokens: Sequence[int], count: int) -> int:
        first = max(self.prompt_length, len(tokens) - count)
        least = max(self.prompt_length, first - LONG_PATIENCE)
        # Byte tokens side by side are decoded together, so a window must not begin among them.
        while first > least and self.vocabulary.is_byte(tokens[first]):
            first -= 1
        return first

    def _decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        if skip_special_tokens:
            return decode(self.tokenizer, ids)
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
