"""A policy as a method that is asked all turns of a question, and how surprised the large model is by its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bild.data.files import whole_lines
from bild.data.json_text import from_json, is_number, to_json
from bild.decoding import Stats
from bild.errors import writing
from bild.evaluation.journal import Record
from bild.evaluation.method import Output
from bild.evaluation.own import PolicyMethod
from bild.evaluation.spec_bench.questions import Question
from bild.evaluation.surprise import surprise_of

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder

TURN = "num_tokens_of_turn_"
"""Counts of a record: new tokens of each turn, from 1 on."""


class Dialogue:
    """Asks one turn after the other, each behind the method's own answer to the one before.

    Args:
        method: a policy on a pair.
        questions: by the source of their examples.
    """

    def __init__(self, method: PolicyMethod, questions: Mapping[str, Question]) -> None:
        self.method, self.questions = method, questions
        self.name, self.weight_bytes, self.details = method.name, method.weight_bytes, method.details

    def __call__(self, source: str) -> Output:
        turns: list[dict[str, str]] = []
        outputs: list[Output] = []
        for text in self.questions[source].turns:
            turns.append({"role": "user", "content": text})
            outputs.append(self.method(prompt_of(self.method.decoder, turns)))
            turns.append({"role": "assistant", "content": outputs[-1].text})
        return Output(
            "\n\n".join(output.text for output in outputs),
            [token for output in outputs for token in output.token_ids],
            ttft_s=outputs[0].ttft_s,
            stats=Stats.total(output.stats for output in outputs if output.stats is not None),
            counts={f"{TURN}{number}": len(output.token_ids) for number, output in enumerate(outputs, 1)},
        )

    def close(self) -> None:
        self.method.close()


def prompt_of(decoder: BigLittleDecoder, turns: Sequence[dict[str, str]]) -> Any:
    """What a pair is given of a conversation: an encoder-decoder reads the last text alone."""
    return turns[-1]["content"] if decoder.large.is_encoder_decoder else list(turns)


class Surprises:
    """How surprised a large model is by answers: read once each, and kept.

    Args:
        decoder: of the large model.
        file: JSON lines; None: in memory only.
    """

    def __init__(self, decoder: BigLittleDecoder, file: Path | None = None) -> None:
        self.decoder, self.file = decoder, file
        lines = whole_lines(file) if file is not None and file.exists() else []
        self.known: dict[str, float] = dict(filter(None, map(_known, lines)))

    def of(self, question: Question, record: Record) -> float:
        """Of all answers to a question, in nats."""
        answers = _answers(record)
        text = json.dumps([question.id, question.turns, answers])
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        if key not in self.known:
            self.known[key] = self._read(question, answers)
            if self.file is not None:
                with writing(self.file), self.file.open("a", encoding="utf-8") as out:
                    out.write(to_json([key, self.known[key]]) + "\n")
        return self.known[key]

    def _read(self, question: Question, answers: Sequence[Sequence[int]]) -> float:
        from bild.generation.text import decode

        turns: list[dict[str, str]] = []
        total = 0.0
        for text, tokens in zip(question.turns, answers, strict=True):
            turns.append({"role": "user", "content": text})
            (job,) = self.decoder.jobs([prompt_of(self.decoder, turns)])
            total += surprise_of(self.decoder.large, job.source, job.request.prompt, tokens)
            turns.append({"role": "assistant", "content": decode(self.decoder.tokenizer, tokens)})
        return total


def _known(line: bytes) -> tuple[str, float] | None:
    """What was read before; None of a damaged line."""
    try:
        key, nats = from_json(line)
    except (ValueError, TypeError):
        return None
    return (key, float(nats)) if isinstance(key, str) and is_number(nats) else None


def _answers(record: Record) -> list[list[int]]:
    """The tokens of a record, turn by turn."""
    counts = {} if record.counts is None else record.counts
    ends = [counts[name] for name in sorted(counts, key=_number) if name.startswith(TURN)]
    answers, at = [], 0
    for count in ends:
        answers.append(list(record.token_ids[at : at + count]))
        at += count
    return answers


def _number(name: str) -> int:
    return int(name.removeprefix(TURN)) if name.startswith(TURN) else 0
