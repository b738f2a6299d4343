"""Counts of n-grams, and the distribution of the next token that follows from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bild.errors import InputError, one_line, reading, writing

LONGEST = 5
"""Longest n-gram: contexts beyond are seen once and never again."""


class Followers(NamedTuple):
    """What followed a context."""

    tokens: Tensor
    counts: Tensor


class Ngrams:
    """A model of token n-grams that backs off to shorter ones (Katz 1987).

    With ``c`` the counts of what followed a context ``h`` of up to ``order - 1`` tokens, and ``h'`` the context
    without its first token,

        ``p(x | h) = (c(x) - D) / Σ c`` where ``x`` was seen behind ``h``, else ``a(h) p(x | h')``,

    where ``a(h)`` shares out what the seen tokens give away. The empty context backs off to equal chances, so no token
    is impossible. Absolute discounting instead of Good and Turing's is ours: it has no holes in small counts.

    Args:
        vocab_size: token ids are below, 1…
        order: length of the longest n-gram, 1…5; 3 is the paper's.
        discount: ``D``, above 0 and below 1; higher trusts the counts less.

    Raises:
        ValueError: a value out of range.
    """

    def __init__(self, vocab_size: int, order: int = 3, discount: float = 0.5) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size is {vocab_size}; allowed is 1 or more")
        if not 1 <= order <= LONGEST:
            raise ValueError(f"order is {order}; allowed is 1 to {LONGEST}")
        if not 0 < discount < 1:
            raise ValueError(f"discount is {discount}; allowed is above 0 and below 1")
        self.vocab_size, self.order, self.discount = vocab_size, order, discount
        self._counts: dict[tuple[int, ...], dict[int, int]] = {}
        self._followers: dict[tuple[int, ...], Followers] = {}

    def add(self, texts: Iterable[Sequence[int]]) -> Self:
        """Count texts: prompt first, end token last. A prompt's first token is a context, and is not counted itself."""
        for text in texts:
            for at in range(1, len(text)):
                for size in range(min(self.order, at + 1)):
                    followers = self._counts.setdefault(tuple(text[at - size : at]), {})
                    followers[text[at]] = followers.get(text[at], 0) + 1
        self._followers.clear()
        return self

    def probabilities(self, context: Sequence[int]) -> Tensor:
        """Of the next token ``[V]``, float32.

        Args:
            context: tokens before it; the last ``order - 1`` count.
        """
        p = torch.full((self.vocab_size,), 1 / self.vocab_size)
        for size in range(min(self.order, len(context) + 1)):
            seen = self._seen(tuple(context[len(context) - size :]))
            if seen is None:
                break
            tokens, counts = seen
            rest, total = 1 - float(p[tokens].sum()), float(counts.sum())
            if len(tokens) == self.vocab_size or rest < 1e-6:
                # Nothing is left to back off to, so nothing is given away.
                p = torch.zeros(self.vocab_size).scatter_(0, tokens, counts / total)
                continue
            p = p * (self.discount * len(tokens) / total / rest)
            p[tokens] = (counts - self.discount) / total
        return p

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the counts to a safetensors file.

        Raises:
            InputError: it cannot be written.
        """
        tensors = {}
        for size in range(self.order):
            rows = [(*c, x, n) for c, seen in self._counts.items() if len(c) == size for x, n in sorted(seen.items())]
            tensors[str(size)] = torch.tensor(rows, dtype=torch.int32).reshape(-1, size + 2)
        metadata = {"format": FORMAT, "vocab_size": str(self.vocab_size), "discount": str(self.discount)}
        with writing(file):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file(tensors, str(file), metadata)
            except SafetensorError as error:
                raise InputError(f"cannot write {os.fspath(file)}: {one_line(error)}") from None

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Ngrams:
        """Read what :meth:`save` has written; a file that has not changed since is read once.

        Raises:
            InputError: there is no such file, or it holds something else.
        """
        with reading(file):
            changed = os.stat(file).st_mtime_ns
        return _load(os.fspath(file), changed)

    def _seen(self, context: tuple[int, ...]) -> Followers | None:
        if context not in self._followers:
            if context not in self._counts:
                return None
            seen = self._counts[context]
            self._followers[context] = Followers(torch.tensor([*seen]), torch.tensor([*seen.values()]).float())
        return self._followers[context]


FORMAT = "bild n-grams 1"


@lru_cache(maxsize=8)
def _load(file: str, changed: int) -> Ngrams:
    try:
        with safe_open(file, framework="pt") as tensors:
            about = tensors.metadata()
            if about is None or about.get("format") != FORMAT:
                raise InputError(f"{file} holds no n-gram counts; make some with bild train-ngram")
            sizes = sorted(tensors.keys(), key=int)
            ngrams = Ngrams(int(about["vocab_size"]), len(sizes), float(about["discount"]))
            for size in sizes:
                for *context, token, count in tensors.get_tensor(size).tolist():
                    ngrams._counts.setdefault(tuple(context), {})[token] = count
    except (SafetensorError, OSError):
        raise InputError(f"{file} is no safetensors file; make one with bild train-ngram") from None
    return ngrams
