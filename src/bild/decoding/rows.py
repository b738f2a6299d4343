"""One row of a batch: what was asked for, and the tokens written so far."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to be continued.

    Args:
        prompt: token ids both models start from (decoder start and forced tokens of an
            encoder-decoder, the prompt of a decoder-only model); at least one.
        max_new_tokens: longest continuation, at least 1.
        eos_token_ids: a token of these ends the text.
        stop: given all tokens of the row, says whether the text ends there (stop strings).
        process: ``(prefix tokens, logits [V]) -> logits [V]``: changes the scores of the token
            after a prefix, for both models (forbidden, forced and penalised tokens).
        generator: source of random numbers when sampling, one a row, so that a row's text does
            not depend on its neighbours.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    eos_token_ids: Collection[int] = ()
    stop: Callable[[Sequence[int]], bool] | None = None
    process: Callable[[Sequence[int], Tensor], Tensor] | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a row needs at least one prompt token, got none")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, must be at least 1")


@dataclass(slots=True)
class Row:
    """``tokens[:committed]`` is final, ``tokens[committed:]`` is the draft."""

    index: int
    request: Request
    tokens: list[int] = field(init=False)
    committed: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)
        self.committed = len(self.tokens)

    def ended(self) -> FinishReason | None:
        """Whether the text ends with the last token written, and why."""
        request = self.request
        if self.tokens[-1] in request.eos_token_ids:
            return "eos"
        if request.stop is not None and request.stop(self.tokens):
            return "stop"
        if len(self.tokens) - len(request.prompt) >= request.max_new_tokens:
            return "length"
        return None


def process(rows: Sequence[Row], logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Apply each row's processor to the last ``counts[b]`` positions of ``logits`` ``[B, T, V]``.

    Returns at least float32: probabilities need it, and a CPU finds the largest of 16-bit numbers
    more slowly. The last position scores what follows ``row.tokens``, the one before what follows all but
    the last of them, and so on: processors depend on the prefix.
    """
    if logits.dtype.itemsize < torch.float32.itemsize:
        logits = logits.float()
    if all(row.request.process is None for row in rows):
        return logits
    logits = logits.clone()
    for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
        if row.request.process is not None:
            for back in range(count):
                prefix = row.tokens[: len(row.tokens) - back]
                logits[b, -1 - back] = row.request.process(prefix, logits[b, -1 - back])
    return logits
