"""Who wrote which piece of a text, and what was rolled back (the paper's Figure 9)."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bild.generation.result import Result
from bild.generation.text import pieces

Kind = str
"""Who wrote a piece (``"small"``, ``"large"``, ``"ngram"``, …), or ``"rolled_back"``."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of a token, or of the tokens that one rollback threw away."""

    text: str
    kind: Kind


def trace(result: Result, tokenizer: PreTrainedTokenizerBase | None) -> list[Piece]:
    """The pieces of a text in order; what was rolled back stands before its correction."""
    found: list[Piece] = []
    written: list[int] = []
    texts = iter(pieces(tokenizer, result.token_ids))
    for commit in result.rounds:
        for writer, text in zip(commit.writers, texts, strict=False):
            # A beam search has no one draft that a token corrects.
            if commit.rolled_back and writer == "large" and commit.hypotheses is None:
                lost, kept = commit.draft[commit.accepted :], commit.tokens[: commit.accepted]
                found.append(Piece("".join(pieces(tokenizer, lost, [*written, *kept])), "rolled_back"))
            found.append(Piece(text, writer))
        written += commit.tokens
    return found
