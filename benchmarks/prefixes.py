"""Prompts that begin alike: an engine that keeps what was read, against one that reads each prompt whole.

    python benchmarks/prefixes.py --large SmolLM2-135M-Instruct.Q4_1.gguf --dtype int8

A conversation of four turns behind a system message, requests that share their instructions, and one prompt that is
asked for several times. Both engines have the same models and take turns; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

import bild
from bild.decoding import Rules
from bild.engine import Engine, Event, Failed, Finished, Limits, Written
from bild.machine import describe_machine, versions

RULES = " ".join(
    f"Rule {number}: when somebody asks about {thing}, answer in one short sentence, name a number if there is one, "
    "and never guess."
    for number, thing in enumerate(
        ["trains", "tickets", "luggage", "refunds", "delays", "seats", "bicycles", "animals", "food", "groups"], 1
    )
)
QUESTIONS = [
    "How much does it cost to take a bicycle on the train?",
    "And what if there are two of us?",
    "My train was late by two hours. What now?",
    "May my dog come along, too?",
]
KEPT = 16384


@dataclass
class Asker:
    """One engine, and the texts that came of it."""

    decoder: bild.BigLittleDecoder
    engine: Engine
    rules: Rules
    tokens: dict[int, list[int]] = field(default_factory=dict)
    ends: dict[int, Finished] = field(default_factory=dict)

    def hear(self, events: list[Event]) -> None:
        """What the engine tells."""
        for event in events:
            if isinstance(event, Failed):
                raise RuntimeError(event.message)
            if isinstance(event, Written):
                self.tokens.setdefault(event.ticket, []).extend(event.commit.tokens)
            else:
                self.ends[event.ticket] = event

    def ask(self, chats: list[list[dict[str, str]]], longest: int) -> list[int]:
        """Hand in conversations, and decode until all have their answers."""
        jobs = self.decoder.jobs(chats, max_new_tokens=longest)
        place = self.engine.reserve()
        ids = self.engine.submit(jobs, self.rules, self.hear, place)
        self.engine.release(place)
        while self.engine.step():
            pass
        return ids

    def text(self, id: int) -> str:
        """What was written."""
        assert self.decoder.tokenizer is not None
        text: str = self.decoder.tokenizer.decode(self.tokens[id], skip_special_tokens=True)
        return text


def chat(question: str) -> list[dict[str, str]]:
    """A first turn."""
    return [{"role": "system", "content": RULES}, {"role": "user", "content": question}]


def conversation(asker: Asker, longest: int) -> list[float]:
    """Seconds to the first token of each turn."""
    turns, seconds = chat(QUESTIONS[0]), []
    for question in [*QUESTIONS[1:], ""]:
        (id,) = asker.ask([turns], longest)
        seconds.append(asker.ends[id].ttft_s)
        turns = [*turns, {"role": "assistant", "content": asker.text(id)}, {"role": "user", "content": question}]
    return seconds


def requests(asker: Asker, longest: int) -> list[float]:
    """Seconds that all requests take."""
    start = time.perf_counter()
    asker.ask([chat(question) for question in QUESTIONS * 2], longest)
    return [time.perf_counter() - start]


def several(asker: Asker, longest: int) -> list[float]:
    """Seconds that four texts of one prompt take."""
    start = time.perf_counter()
    asker.ask([chat(QUESTIONS[0])] * 4, longest)
    return [time.perf_counter() - start]


SCENES: dict[str, Callable[[Asker, int], list[float]]] = {
    "conversation": conversation,
    "requests": requests,
    "several": several,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", required=True, help="a chat model")
    parser.add_argument("--policy", default="large")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    decoder = bild.BigLittleDecoder.from_pretrained(
        large=asked.large, drafter="ngram", runtime="static", dtype=asked.dtype
    )
    rules = Rules(decoder.resolve_policy(asked.policy))
    prompt = len(decoder.jobs([chat(QUESTIONS[0])], max_new_tokens=1)[0].request.prompt)
    found: dict[str, dict[str, list[list[float]]]] = {scene: {"whole": [], "kept": []} for scene in SCENES}
    for repeat in range(asked.repeats + 1):
        for scene, act in SCENES.items():
            for way, tokens in (("whole", 0), ("kept", KEPT)):
                # A new engine: nothing is known at first.
                asker = Asker(decoder, decoder.engine(Limits(rows=8, prefix_tokens=tokens)), rules)
                seconds = act(asker, asked.tokens)
                if repeat:
                    found[scene][way].append(seconds)
                    print(f"{scene}, {way}: {' '.join(f'{s:.2f}' for s in seconds)} s", file=sys.stderr, flush=True)
    medians = {
        scene: {way: [statistics.median(column) for column in zip(*runs, strict=True)] for way, runs in ways.items()}
        for scene, ways in found.items()
    }
    facts = {"threads": asked.threads, "dtype": asked.dtype, "policy": asked.policy, "prompt": prompt}
    print(json.dumps({**facts, "seconds": medians, "machine": describe_machine(), "versions": versions()}))


if __name__ == "__main__":
    main()
