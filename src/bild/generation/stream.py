"""A text handed out while it is written."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerBase

from bild.decoding import Commit
from bild.generation.result import Result
from bild.generation.text import TextStream


class Stream:
    """Iterator of text pieces; only committed tokens are shown, so nothing is ever taken back."""

    result: Result | None = None
    """Set when the text is complete."""

    def __init__(self, commits: Iterator[Commit], tokenizer: PreTrainedTokenizerBase | None, start: float) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._pieces = self._run(commits)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with torch.inference_mode():
            return next(self._pieces)

    def _run(self, commits: Iterator[Commit]) -> Iterator[str]:
        text = TextStream(self._tokenizer)
        rounds: list[Commit] = []
        ttft_s = 0.0
        for commit in commits:
            ttft_s = ttft_s if rounds else time.perf_counter() - self._start
            rounds.append(commit)
            if piece := text.add(commit.tokens):
                yield piece
        self.result = Result.of(rounds, self._tokenizer, ttft_s, time.perf_counter() - self._start)
        if piece := text.end():
            yield piece
