"""From tokens back to text, piece by piece, in time that grows with the tokens and not with their square."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"
"""What tokenizers print for a character whose bytes have not all come yet."""
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How SentencePiece names a token that is one byte of a character outside its vocabulary."""
CONTEXT = 4
"""Settled tokens that are decoded again before new ones: the first token of a text is shown without its space."""
PATIENCE, LONG_PATIENCE = 16, 256
"""Tokens that may wait for the end of a character; the second for byte tokens, which settle all together."""
BLANK_CONTEXT = 16
"""Tokens of context at most where all of them are blank."""
LAST_BYTES = 4
"""Tokens whose bytes may belong to a character that is not complete."""


def decode(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> str:
    """The text of these tokens without special ones; empty where there is no tokenizer."""
    if tokenizer is None:
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def cleans(tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether decoding joins words and punctuation (``"word ."`` to ``"word."``)."""
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    # transformers leaves the text of a BPE tokenizer as it is, whatever the checkpoint says.
    insists = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return bool(insists) or type(getattr(backend, "model", None)).__name__ != "BPE"


def shared_start(first: str, second: str) -> int:
    """How many letters two texts have in common before they differ."""
    if second.startswith(first):
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


class Vocabulary:
    """What single tokens are, looked up once each.

    Args:
        tokenizer: of the pair.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = weakref.ref(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
        self._names: dict[int, str] = {}
        self._silent: dict[int, bool] = {}
        self._shown: dict[int, str] = {}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which this does not keep alive."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "the tokenizer is gone"
        return tokenizer

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """That of a tokenizer, made anew only where its special tokens have changed: some have thousands."""
        key = (len(tokenizer), tuple(tokenizer.all_special_ids))
        known = _KNOWN.get(tokenizer)
        if known is None or known[0] != key:
            known = _KNOWN[tokenizer] = (key, cls(tokenizer))
        return known[1]

    def name(self, id: int) -> str:
        """As the vocabulary spells it; empty for an id it does not have."""
        if id not in self._names:
            name: str | None = self.tokenizer.convert_ids_to_tokens([id])[0]
            self._names[id] = "" if name is None else name
        return self._names[id]

    def is_byte(self, id: int) -> bool:
        """Whether the token is one byte of a character."""
        return BYTE.fullmatch(self.name(id)) is not None

    def shown(self, id: int) -> str:
        """The text it adds behind another token; a special one by its name."""
        if id not in self._shown:
            twice, once = (
                str(self.tokenizer.decode([id] * count, skip_special_tokens=True, clean_up_tokenization_spaces=False))
                for count in (2, 1)
            )
            own = twice[len(once) :] if twice.startswith(once) else once
            self._shown[id] = self.name(id) if self.is_silent(id) else own
        return self._shown[id]

    def is_silent(self, id: int) -> bool:
        """Whether the token is never part of a text: a special one, or an id without a token."""
        if id not in self._silent:
            self._silent[id] = not self.name(id) or (id in self.special and not decode(self.tokenizer, [id]))
        return self._silent[id]


_KNOWN: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, Vocabulary]] = weakref.WeakKeyDictionary()


class Growing:
    """A text that grows by one token at a time, before spaces are cleaned up.

    Only the tokens that may still change and a few settled ones before them are decoded again.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._window: list[int] = []
        self._read = 0  # so many tokens of the window are settled
        self._context = ""  # and this is their text

    def add(self, id: int) -> list[str]:
        """The text of each token that this one settles, in order; empty where none is settled."""
        if self.vocabulary.is_silent(id):
            return []
        self._window.append(id)
        text = self._decode(self._window)
        if not self._may_change(text[len(self._context) :]):
            return self._settle(len(self._window), text)
        patience = LONG_PATIENCE if self.vocabulary.is_byte(id) else PATIENCE
        return self._force(text) if len(self._window) - self._read >= patience else []

    def end(self) -> list[str]:
        """The text of each token that was not settled before."""
        waiting = len(self._window) > self._read
        return self._settle(len(self._window), self._decode(self._window)) if waiting else []

    def _may_change(self, new: str) -> bool:
        # One byte token too many turns the whole run of them into replacement characters.
        return not new or new.endswith(INCOMPLETE) or self.vocabulary.is_byte(self._window[-1])

    def _force(self, text: str) -> list[str]:
        """Settle what no later byte can belong to: a text of broken characters must not wait for ever."""
        end = len(self._window) - LAST_BYTES
        for upto in range(end, end - LAST_BYTES, -1):
            before = self._decode(self._window[:upto])
            if text.startswith(before):
                return self._settle(upto, before)
        return []

    def _settle(self, upto: int, text: str) -> list[str]:
        shares = self._shares(upto, text[len(self._context) :])
        start = max(0, upto - CONTEXT)
        context = self._decode(self._window[start:upto])
        if not context.strip() and upto < BLANK_CONTEXT:
            start, context = 0, text
        del self._window[:start]
        self._read, self._context = upto - start, context
        return shares

    def _shares(self, upto: int, new: str) -> list[str]:
        """``new`` cut at the tokens; a character belongs to the token that completes it."""
        cuts = [0]
        for end in range(self._read + 1, upto):
            shown = self._decode(self._window[:end])[len(self._context) :].rstrip(INCOMPLETE)
            cuts.append(max(cuts[-1], shared_start(shown, new)))
        return [new[first:last] for first, last in zip(cuts, [*cuts[1:], len(new)], strict=True)]

    def _decode(self, ids: Sequence[int]) -> str:
        tokenizer = self.vocabulary.tokenizer
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class TextStream:
    """Grows a text token by token and hands out what can no longer change.

    The pieces joined are the text of all tokens: a character whose bytes are split over tokens
    waits for its last byte, and a space for what it separates.

    Args:
        tokenizer: of the pair; None: there is no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self.tokenizer = tokenizer
        self._growing = None if tokenizer is None else Growing(Vocabulary.of(tokenizer))
        self._cleans = cleans(tokenizer)
        self._held = ""  # raw text whose spaces may still go

    def add(self, tokens: Iterable[int]) -> str:
        """The text these tokens settle, maybe empty."""
        if self._growing is None:
            return ""
        self._held += "".join(text for token in tokens for text in self._growing.add(token))
        return self._hand_out(_last_cut(self._held) if self._cleans else len(self._held))

    def end(self) -> str:
        """Whatever is still held back."""
        if self._growing is None:
            return ""
        self._held += "".join(self._growing.end())
        return self._hand_out(len(self._held))

    def _hand_out(self, upto: int) -> str:
        ready, self._held = self._held[:upto], self._held[upto:]
        return _clean(self.tokenizer, ready) if self._cleans else ready


def pieces(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    """The text each token adds after ``context``; special tokens by their name.

    A character spread over tokens belongs to the one that completes it, so joining the pieces
    of ordinary tokens gives their text.
    """
    if tokenizer is None:
        return [str(id) for id in ids]
    vocabulary = Vocabulary.of(tokenizer)
    before = [id for id in context[-PATIENCE:] if not vocabulary.is_silent(id)]
    loud = [id for id in ids if not vocabulary.is_silent(id)]
    growing = Growing(vocabulary)
    texts = [text for id in [*before, *loud] for text in growing.add(id)] + growing.end()
    if cleans(tokenizer):
        texts = cleaned(tokenizer, texts)
    own = iter(texts[len(before) :])
    return [vocabulary.name(id) if vocabulary.is_silent(id) else next(own) for id in ids]


def shown(tokenizer: PreTrainedTokenizerBase | None, id: int) -> str:
    """The text a token adds behind another one; a special one by its name."""
    return str(id) if tokenizer is None else Vocabulary.of(tokenizer).shown(id)


def _last_cut(raw: str) -> int:
    """The last place where cleaning what is before and what is behind apart gives the same text."""
    place = raw.rfind(" ")
    # The one pattern that ends in a space is the quote between two of them.
    while place > 0 and raw[:place].endswith(" '"):
        place = raw.rfind(" ", 0, place)
    return max(place, 0)


def cleaned(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The same texts without the spaces that cleaning takes out of their sum."""
    whole = _clean(tokenizer, "".join(texts))
    place, kept = 0, []
    for text in texts:
        start = place
        for letter in text:
            # Cleaning only takes letters away, so the first that fits may stay.
            place += whole[place : place + 1] == letter
        kept.append(whole[start:place])
    if kept and place < len(whole):
        kept[-1] += whole[place:]
    return kept


def _clean(tokenizer: PreTrainedTokenizerBase | None, raw: str) -> str:
    assert tokenizer is not None
    return str(tokenizer.clean_up_tokenization(raw))
