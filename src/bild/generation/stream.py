"""A text handed out while it is written."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from bild.decoding import Commit, Writer
from bild.generation.result import Result
from bild.generation.text import TextStream


class Stream:
    """Iterator of text pieces; only committed tokens are shown, so nothing is ever taken back.

    Who stops reading early may say so with :meth:`close`, or by ``with decoder.stream(…) as pieces``.
    """

    result: Result | None = None
    """Set when the text is complete."""
    parts: Sequence[tuple[str, Writer]] = ()
    """The piece that was handed out last, cut by who wrote it; a character belongs to the token that completes it."""

    def __init__(
        self, written: Generator[list[Commit]], tokenizer: PreTrainedTokenizerBase | None, start: float
    ) -> None:
        self._tokenizer = tokenizer
        self._start = start
        self._written = written
        self.rounds: list[Commit] = []
        """Every round so far."""
        self._pieces = self._run(written)

    def __iter__(self) -> Iterator[str]:
        return self

    def close(self) -> None:
        """Stop decoding; nothing more is written, and :attr:`result` stays None if the text was not complete."""
        self._pieces.close()
        self._written.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> str:
        with torch.inference_mode():
            return next(self._pieces)

    def _run(self, written: Iterable[list[Commit]]) -> Generator[str]:
        text = TextStream(self._tokenizer)
        ttft_s = 0.0
        for commit in chain.from_iterable(written):
            if commit.tokens and not ttft_s:
                ttft_s = time.perf_counter() - self._start
            self.rounds.append(commit)
            signed = zip(commit.tokens, commit.writers, strict=True)
            self.parts = _joined((text.add([token]), writer) for token, writer in signed)
            if self.parts:
                yield "".join(piece for piece, _ in self.parts)
        self.result = Result.of(self.rounds, self._tokenizer, ttft_s, time.perf_counter() - self._start)
        if piece := text.end():
            self.parts = [(piece, self.result.writers[-1])]
            yield piece


def _joined(parts: Iterable[tuple[str, Writer]]) -> list[tuple[str, Writer]]:
    """Neighbours of one writer as one, without what is empty."""
    written = [part for part in parts if part[0]]
    groups = groupby(written, key=lambda part: part[1])
    return [("".join(piece for piece, _ in members), writer) for writer, members in groups]


class Columns:
    """Hands a streamer the prompt and then one token of every row at a time, as plain ``generate`` does.

    Rows advance at their own pace here, so a column waits for the slowest of them.
    """

    def __init__(self, streamer: BaseStreamer, prompt: Tensor, pad: int | None) -> None:
        self.streamer = cast(Any, streamer)
        self.pad = pad
        self.rows: list[list[int]] = [[] for _ in prompt]
        self.ended = [False for _ in prompt]
        self.sent = 0
        self.streamer.put(prompt.cpu())

    def add(self, commit: Commit) -> None:
        """Take one commit, and hand out what all rows have."""
        row = commit.row
        self.rows[row] += commit.tokens
        self.ended[row] = commit.finish_reason is not None
        lengths = [len(tokens) for tokens in self.rows]
        ready = min((n for n, ended in zip(lengths, self.ended, strict=True) if not ended), default=max(lengths))
        for at in range(self.sent, ready):
            self.streamer.put(torch.tensor([row[at] if at < len(row) else self.pad for row in self.rows]))
        self.sent = max(self.sent, ready)
