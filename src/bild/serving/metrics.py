"""Counters and gauges for Prometheus, under the suffixes that boards for other servers know."""

from __future__ import annotations

from collections import Counter as TallyOf
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from bild.decoding import Commit
from bild.engine import Engine, Turn
from bild.serving.settings import Settings

# A sentence takes milliseconds.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
LABELS = ("model_name", "engine")
CONTENT_TYPE = CONTENT_TYPE_LATEST
MOST_TURNS = 256
"""That may wait to be counted."""
ENOUGH_TURNS = 64
"""That are counted after an answer: counting them with each takes a twentieth of what HTTP costs."""


class Board:
    """What ``/metrics`` shows; labels never hold who asked.

    Args:
        engine: whose turns are counted from now on.
        settings: name of the model, and what names begin with.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._registry, self._prefix = CollectorRegistry(), settings.metrics_prefix
        self._own = (settings.model, "0")
        self._gauges(engine)
        count, seconds = self._counter, self._histogram
        self.generated = count("generation_tokens", "Tokens written.")
        self.prompts = count("prompt_tokens", "Tokens of sources and prompts.")
        self.asked = count("prefix_cache_queries", "Tokens of prompts, that might have been read before.")
        self.known = count("prefix_cache_hits", "Tokens of prompts that had been read before, of another text.")
        self.drafts = count("spec_decode_num_drafts", "Drafts handed over.")
        self.drafted = count("spec_decode_num_draft_tokens", "Tokens drafted.")
        self.accepted = count("spec_decode_num_accepted_tokens", "Drafted tokens that stayed.")
        self.by_large = count("large_tokens", "Tokens the large model wrote.")
        self.rollbacks = count("rollbacks", "Drafts that were rolled back.")
        self.cancelled = count("requests_cancelled", "Texts whose client left, or that took too long.")
        self.row_failures = count("row_failures", "Texts that could not be decoded.")
        self._positions = self._labelled("spec_decode_num_accepted_tokens_per_pos", "Accepted by position.", "position")
        self._hand_overs = self._labelled("hand_overs", "Drafts by why they were handed over.", "reason")
        self._success = self._labelled("request_success", "Texts by how they ended.", "finished_reason")
        self._answers = self._labelled("http_responses", "Answers by status.", "status")
        self._unknown = count("unknown_fields", "Fields of requests that were passed over (--lenient).")
        self.ttft = seconds("time_to_first_token_seconds", "From a text's arrival to its first token.")
        self.latency = seconds("e2e_request_latency_seconds", "From a text's arrival to its last token.")
        self.queued = seconds("request_queue_time_seconds", "How long a text waited for a row.")
        self.turns = seconds("turn_seconds", "One round of all rows.")
        self.iteration = self._histogram("iteration_tokens_total", "Tokens of a turn.", TOKENS)
        self._turns: deque[Turn] = deque()
        engine.watch = self.turn

    def page(self) -> bytes:
        """As Prometheus reads it."""
        self._count_turns()
        return generate_latest(self._registry)

    def turn(self, turn: Turn) -> None:
        """Note a turn; on the engine's thread, which has better to do than count."""
        self._turns.append(turn)
        if len(self._turns) >= MOST_TURNS:
            self._count_turns()

    def _count_turns(self) -> None:
        """Count the turns that are not counted yet."""
        turns: list[Turn] = []
        while self._turns:
            try:
                turns.append(self._turns.popleft())
            except IndexError:
                # The other thread was faster.
                break
        if turns:
            self._count(turns)

    def _count(self, turns: Sequence[Turn]) -> None:
        """All at once: a counter that is raised costs a lock, and a text has many commits."""
        for turn in turns:
            self.turns.observe(turn.seconds)
            self.iteration.observe(sum(len(commit.tokens) for commit in turn.commits))
            for failed in turn.failed:
                (self.row_failures if failed.failure == "row" else self.cancelled).inc()
        for end in chain.from_iterable(turn.finished for turn in turns):
            self.ttft.observe(end.ttft_s)
            self.latency.observe(end.total_s)
            self.queued.observe(end.queue_s)
            self.asked.inc(end.prompt)
            self.known.inc(end.known)
        self._commits([commit for turn in turns for commit in turn.commits])

    def answered(self, status: int) -> None:
        """Count an answer that was given."""
        self._answers(str(status)).inc()
        if len(self._turns) >= ENOUGH_TURNS:
            self._count_turns()

    def unknown(self, name: str) -> None:
        """Count a field that was passed over; its name is the client's, and no label."""
        self._unknown.inc()

    def _commits(self, commits: Sequence[Commit]) -> None:
        drafted = [commit for commit in commits if commit.reason is not None]
        self.generated.inc(sum(len(commit.tokens) for commit in commits))
        self.by_large.inc(sum(commit.writers.count("large") for commit in commits))
        self.drafts.inc(len(drafted))
        self.drafted.inc(sum(len(commit.draft) for commit in drafted))
        self.accepted.inc(sum(commit.accepted for commit in drafted))
        self.rollbacks.inc(sum(commit.rolled_back for commit in drafted))
        for reason, count in TallyOf(commit.reason for commit in drafted).items():
            self._hand_overs(str(reason)).inc(count)
        for position, count in TallyOf(at for commit in drafted for at in range(commit.accepted)).items():
            self._positions(str(position)).inc(count)
        ends = (commit.finish_reason for commit in commits if commit.finish_reason is not None)
        for end, count in TallyOf("length" if end == "length" else "stop" for end in ends).items():
            self._success(end).inc(count)

    def _gauges(self, engine: Engine) -> None:
        limits = engine.limits
        self._gauge("num_requests_running", "Texts that have a row.", lambda: engine.load.rows)
        self._gauge("num_requests_waiting", "Texts that wait for a row.", lambda: engine.load.waiting)
        self._gauge("num_tokens_waiting", "Tokens of sources and prompts that wait.", lambda: engine.load.tokens)
        self._gauge("num_requests_open", "Requests that are being answered.", lambda: engine.load.requests)
        self._gauge(
            "kv_cache_usage_perc", "Share of the cells in use, 0 to 1.", lambda: engine.load.cells / limits.cells
        )
        self._gauge("rows_limit", "Texts that may be decoded together at the moment.", lambda: engine.rows)

    def _gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        gauge = Gauge(f"{self._prefix}:{name}", help, LABELS, registry=self._registry)
        gauge.labels(*self._own).set_function(value)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"{self._prefix}:{name}", help, LABELS, registry=self._registry).labels(*self._own)

    def _labelled(self, name: str, help: str, label: str) -> Callable[[str], Any]:
        counter = Counter(f"{self._prefix}:{name}", help, (*LABELS, label), registry=self._registry)
        return cache(lambda value: counter.labels(*self._own, value))

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        histogram = Histogram(f"{self._prefix}:{name}", help, LABELS, registry=self._registry, buckets=buckets)
        return histogram.labels(*self._own)
