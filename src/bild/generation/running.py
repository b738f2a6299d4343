"""Inputs through the loop, a few at a time: a row that ends makes room for the next."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedTokenizerBase

from bild.decoding import Commit, Loop, Rules
from bild.decoding.at_once import MANY
from bild.engine import Job, Limits, Memory, Models, PrefixCache, begin, can_keep
from bild.generation.lanes import Take, side_by_side
from bild.generation.result import Result

REFILL_ALONE, REFILL_DRAFTING = 1.0, 0.5
"""Share of the rows that must be free before others take their places, of one model alone and of two.

Measured with the bundled pair compiled, eight rows, bfloat16, one thread of a processor without AMX: rows that ended
are carried through no pass, so waiting for the last one costs little. With drafts it is 1.05 times as fast when half of
the rows are refilled together; one model alone is 0.86 times as fast, for sources are then encoded a few at a time
(``benchmarks/refill.py``).
"""


def run(
    jobs: Iterable[Job], rules: Rules, models: Models, width: int, lanes: int = 1, memory: Memory | None = None
) -> Generator[list[Commit]]:
    """Decode jobs, a commit a row and round, those of a round together; ``Commit.row`` is the job's place.

    Args:
        jobs: asked for one by one, when there is room.
        rules: of all rows.
        models: of the pair.
        width: rows decoded together, 1…
        lanes: batches decoded side by side, 1…
        memory: of what the models have read; width and lanes are then 1.
    """
    waiting, started = iter(jobs), 0

    def take(room: int) -> tuple[int, list[Job]]:
        nonlocal started
        first, taken = started, list(islice(waiting, min(room, sys.maxsize)))
        started += len(taken)
        return first, taken

    opens: Callable[..., Loop] = begin if memory is None else memory.begin
    if memory is None and rules.beams is None and can_keep(models):
        opens = PrefixCache(models, Limits.prefix_tokens).begin

    def lane(take: Take) -> Iterator[list[Commit]]:
        return _rounds(take, rules, models, width, opens)

    yield from lane(take) if lanes == 1 else side_by_side(lane, take, lanes)


def _rounds(take: Take, rules: Rules, models: Models, width: int, begin: Callable[..., Loop]) -> Iterator[list[Commit]]:
    """Decode jobs in one batch, a list of commits a round."""
    share = REFILL_DRAFTING if rules.policy.alone is None else REFILL_ALONE
    batch: Loop | None = None
    while True:
        busy = 0 if batch is None else len(batch.rows)
        free = width - busy
        # A few at a time: reading several sources together costs little more than reading one.
        first, new = take(free) if free >= width * share else (0, [])
        if new:
            joining = begin(new, first, rules, models)
            if batch is None or not busy:
                batch = joining
            else:
                batch.join(joining)
        if batch is None or not batch.rows:
            return
        # Whoever waits for a first token is not kept waiting.
        begins = any(row.committed == row.prompt_length for row in batch.rows)
        yield list(batch.round(most=1 if begins else MANY))


@dataclass
class _Text:
    """A text in the making."""

    start: float
    rounds: list[Commit]
    ttft_s: float = 0.0


def results(
    jobs: Iterable[Job],
    rules: Rules,
    models: Models,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    width: int,
    lanes: int = 1,
    watch: Callable[[Commit], None] | None = None,
) -> Iterator[Result]:
    """Decode jobs; a result a job, in their order, as soon as it and all before it are done.

    What the jobs raise is raised when every result before it has been handed out.

    Args:
        jobs: asked for one by one, when there is room.
        rules: of all rows.
        models: of the pair.
        tokenizer: of the pair, None if it has none.
        width: rows decoded together in each lane, 1…
        lanes: batches decoded side by side, 1…
        watch: called with every commit as it comes.
    """
    texts: dict[int, _Text] = {}
    done: dict[int, Result] = {}
    raised: list[Exception] = []
    due = 0

    def admitted() -> Iterator[Job]:
        try:
            for index, job in enumerate(jobs):
                texts[index] = _Text(time.perf_counter(), [])
                yield job
        except Exception as error:
            raised.append(error)

    rounds = run(admitted(), rules, models, width, lanes)
    while True:
        # Entered anew each time: the caller's own code, which runs in between, is none of this mode's business.
        with torch.inference_mode():
            commits = next(rounds, None)
        if commits is None:
            break
        now = time.perf_counter()
        for commit in commits:
            text = texts[commit.row]
            seconds = now - text.start
            if commit.tokens and not text.ttft_s:
                text.ttft_s = seconds
            text.rounds.append(commit)
            if watch is not None:
                watch(commit)
            if commit.finish_reason is not None:
                done[commit.row] = Result.of(text.rounds, tokenizer, text.ttft_s, seconds)
                del texts[commit.row]
        while due in done:
            yield done.pop(due)
            due += 1
    if raised:
        raise raised[0]
