"""OpenAI's answers: objects, chunks, counts and times."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from bild.decoding import Commit, Stats
from bild.engine import Finished, Place, Written
from bild.generation.text import pieces
from bild.serving.likelihood import Entry, of_chat, of_completion
from bild.serving.openai import Wish
from bild.serving.service import Service, Text, Work
from bild.serving.texts import Writing


@dataclass
class Answer:
    """The answer to one request.

    Args:
        service: of the server.
        wish: what was asked for.
        work: what is decoded.
        chat: whether it is a conversation.
        id: of the request.
    """

    service: Service
    wish: Wish
    work: Work
    chat: bool
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, place: Place) -> dict[str, Any]:
        """All of it at once."""
        texts = await self.service.texts(self.work, place)
        writings = [writing for text in texts for writing in (text.writing, *text.others)]
        choices = [self._choice(index, writing) for index, writing in enumerate(writings)]
        return self._frame(choices, chunk=False) | self._counts(texts)

    async def chunks(self, place: Place, done: list[Text]) -> AsyncGenerator[dict[str, Any]]:
        """As it is written: a chunk a commit that settles text, then one that says why it ended.

        Args:
            place: of the request.
            done: is filled with the texts, for whoever logs.
        """
        done += [Text(self.service.writing(self.work, live=True)) for _ in self.work.jobs]
        started: set[int] = set()
        async with aclosing(self.service.events(self.work, place)) as events:
            async for index, event in events:
                text = done[index]
                if isinstance(event, Finished):
                    text.end = event
                    yield self._chunk(index, "", text.writing, done, end=True)
                elif isinstance(event, Written):
                    before, scored = list(text.writing.tokens), len(text.writing.entries)
                    piece = text.add(event, self.work.rules.window)
                    trace = self._trace(event, before) if self.wish.trace else None
                    new = text.writing.entries[scored:]
                    if piece or trace or new or index not in started:
                        first = index not in started
                        yield self._chunk(index, piece, text.writing, done, first=first, trace=trace, scored=new)
                        started.add(index)
        if self.wish.usage:
            yield self._frame([], chunk=True) | self._counts(done)

    def _frame(self, choices: Sequence[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = "text_completion" if not self.chat else "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.service.settings.model,
            "choices": list(choices),
        }

    def _choice(self, index: int, writing: Writing) -> dict[str, Any]:
        message = {"role": "assistant", "content": writing.text, "refusal": None}
        text = {"message": message} if self.chat else {"text": writing.text}
        scored = self._logprobs(writing.entries)
        choice = {"index": index, **text, "logprobs": scored, "finish_reason": writing.finish_reason}
        return {**choice, "bild": self._traces(writing)} if self.wish.trace else choice

    def _logprobs(self, entries: Sequence[Entry]) -> dict[str, Any] | None:
        if self.wish.ask.options.get("logprobs") is None:
            return None
        shape = of_chat if self.chat else of_completion
        return shape(entries, self.service.tokenizer)

    def _traces(self, writing: Writing) -> list[dict[str, Any]]:
        found, written = [], list[int]()
        for commit in writing.commits:
            found.append(traced(self.service, commit, written))
            written += commit.tokens
        return found

    def _chunk(
        self,
        index: int,
        piece: str,
        writing: Writing,
        done: Sequence[Text],
        *,
        first: bool = False,
        end: bool = False,
        trace: dict[str, Any] | None = None,
        scored: Sequence[Entry] = (),
    ) -> dict[str, Any]:
        delta = {**({"role": "assistant"} if first else {}), **({} if end else {"content": piece})}
        text: dict[str, Any] = {"delta": delta} if self.chat else {"text": piece}
        reason = writing.finish_reason if end else None
        logprobs = None if end else self._logprobs(scored)
        choice = {"index": index, **text, "logprobs": logprobs, "finish_reason": reason}
        if trace is not None:
            choice["bild"] = trace
        frame = self._frame([choice], chunk=True)
        if self.wish.running_usage:
            frame["usage"] = self._usage(done)
        elif self.wish.usage:
            frame["usage"] = None
        return frame

    def _trace(self, event: Written, written: Sequence[int]) -> dict[str, Any]:
        seen = traced(self.service, event.commit, written)
        return {"t_ms": _ms(event.elapsed_s), "rows": event.rows, **seen}

    def _counts(self, texts: Sequence[Text]) -> dict[str, Any]:
        stats = Stats.of(commit for text in texts for commit in text.writing.commits)
        windows = sum((text.windows for text in texts), Counter[int]())
        own = {
            "policy": self.work.policy,
            "lossless": self.work.rules.policy.lossless,
            "windows": {str(window): windows[window] for window in sorted(windows)},
            "stats": stats.to_dict(),
        }
        return {"usage": self._usage(texts), "metrics": _metrics(texts, self.work, stats), "bild": own}

    def _usage(self, texts: Sequence[Text]) -> dict[str, Any]:
        prompt = self.work.prompt_tokens
        commits = [commit for text in texts for commit in text.writing.commits]
        written = sum(len(each.tokens) for text in texts for each in (text.writing, *text.others))
        drafted, accepted = sum(len(each.draft) for each in commits), sum(each.accepted for each in commits)
        ends = [text.end for text in texts[:: self.work.ask.count] if text.end is not None]
        details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(end.known for end in ends)},
            "completion_tokens_details": details,
        }


def traced(service: Service, commit: Commit, written: Sequence[int]) -> dict[str, Any]:
    """Who wrote what in a round, and what was lost of the draft."""
    lost = commit.draft[commit.accepted :]
    kept = [*written, *commit.tokens[: commit.accepted]]
    texts = pieces(service.tokenizer, commit.tokens, written)
    return {
        "tokens": [
            {"id": id, "text": text, "writer": writer}
            for id, text, writer in zip(commit.tokens, texts, commit.writers, strict=True)
        ],
        "lost": pieces(service.tokenizer, lost, kept) if lost else [],
        "confidences": list(commit.confidences),
        "distances": list(commit.distances),
        "reason": commit.reason,
        "verified": commit.verified,
    }


def _metrics(texts: Sequence[Text], work: Work, stats: Stats) -> dict[str, Any]:
    """Times and acceptance under vLLM's names."""
    ends = [text.end for text in texts if text.end is not None]
    if not ends:
        return {}
    first, last = min(end.ttft_s for end in ends), max(end.total_s for end in ends)
    tokens = sum(len(text.writing.tokens) for text in texts)
    gaps = sum(len(text.writing.tokens) - 1 for text in texts)
    spans = sum(end.total_s - end.ttft_s for end in ends)
    return {
        "time_to_first_token_ms": _ms(first),
        "generation_time_ms": _ms(last - min(end.queue_s for end in ends)),
        "queue_time_ms": _ms(min(end.queue_s for end in ends)),
        "mean_itl_ms": _ms(spans / gaps) if gaps else None,
        "tokens_per_second": tokens / last if last else None,
        "speculative_decoding": _speculation(texts, work.rules.window, stats),
    }


def _speculation(texts: Sequence[Text], window: int, stats: Stats) -> dict[str, Any]:
    histogram = [0] * (window + 1)
    for text in texts:
        for commit in text.writing.commits:
            if commit.reason is not None:
                histogram[min(commit.accepted, window)] += 1
    return {
        "num_spec_tokens": window,
        "num_spec_steps": stats.num_rounds,
        "num_draft_tokens": stats.num_draft_tokens,
        "num_accepted_draft_tokens": stats.num_accepted_tokens,
        "mean_acceptance_length": stats.mean_acceptance_length,
        "draft_acceptance_rate": stats.acceptance_rate,
        "acceptance_histogram": histogram,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
