"""A fleet of devices and the machines that verify for them, simulated: discrete events over recorded acceptance.

Time is the only thing that is made up, by fitted costs and a link; what is accepted was recorded
(:mod:`.recording`). The same seed gives the same trace.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from bild.edge.costs import Costs
from bild.edge.link import HEADERS, Clock, Link
from bild.edge.recording import Recording, Text
from bild.edge.window import Controller, Fixed
from bild.errors import InputError, check_count

ROUTINGS = ("random", "round_robin", "shortest_queue")
BATCHINGS = ("fifo", "length")
OPENING_BYTES, ROUND_BYTES, TOKEN_BYTES = 400, 60, 5
"""What a text's opening weighs beside its tokens, a round beside its draft, and a token, in JSON."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is simulated.

    Args:
        devices: that draft, 1…
        targets: machines that verify, 1…
        texts: to be decoded, all devices together, 1…; the recording is gone through again and again.
        rate: texts that arrive a second, all devices together, by chance (Poisson); None: each device begins its next
            text when it is done with one.
        controller: makes the window of a text; None: nobody drafts, the large model writes each text alone where it is.
        routing: which target a text goes to: ``"random"``, ``"round_robin"`` or ``"shortest_queue"``.
        batching: who shares a pass: ``"fifo"``, or ``"length"``: who has waited longest, and whose drafts are of like
            length.
        rows: of a pass at most, 1…
        link: between every device and every target.
        costs: of passes.
        seed: of all that is left to chance.

    Raises:
        InputError: a value out of range.
    """

    devices: int = 1
    targets: int = 1
    texts: int = 200
    rate: float | None = None
    controller: Callable[[], Controller] | None = Fixed
    routing: Literal["random", "round_robin", "shortest_queue"] = "shortest_queue"
    batching: Literal["fifo", "length"] = "fifo"
    rows: int = 16
    link: Link = field(default_factory=Link)
    costs: Costs = field(default_factory=Costs)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("devices", "targets", "texts", "rows"):
            check_count(name, getattr(self, name))
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise InputError(f"rate is {self.rate}; allowed is more than 0 texts a second")
        for name, allowed in (("routing", ROUTINGS), ("batching", BATCHINGS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to; every figure is simulated."""

    seconds: float
    tokens: int
    latencies: tuple[float, ...]
    """Seconds from a text's arrival to its last token, in the order of arrival."""
    rounds: int
    drafted: int
    accepted: int
    passes: int
    busy: float
    """Share of the time that targets worked, 0…1."""
    bytes_up: int

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.tokens / self.seconds if self.seconds else math.inf

    def percentile(self, share: float) -> float:
        """The latency that so many texts do not exceed, in seconds.

        Args:
            share: 0…1.
        """
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0

    @property
    def mean_window(self) -> float:
        """Tokens a draft."""
        return self.drafted / self.rounds if self.rounds else 0.0

    @property
    def rows_per_pass(self) -> float:
        """Rounds that shared a pass."""
        return self.rounds / self.passes if self.passes else 0.0


@dataclass(eq=False)
class _Job:
    """A text on its way."""

    index: int
    text: Text
    arrived: float
    controller: Controller | None
    target: _Target | None = None
    device: int = 0
    at: int = 0
    drafted: int = 0
    draft_s: float = 0.0
    sent: float = 0.0


@dataclass(eq=False)
class _Target:
    queue: list[_Job] = field(default_factory=list)
    busy: bool = False
    worked: float = 0.0
    texts: int = 0


class _Run:
    def __init__(self, fleet: Fleet, recording: Recording) -> None:
        self.fleet, self.recording = fleet, recording
        self.clock, self.chance = Clock(), random.Random(fleet.seed)
        self.targets = [_Target() for _ in range(fleet.targets)]
        self.waiting: list[list[_Job]] = [[] for _ in range(fleet.devices)]
        self.working = [False] * fleet.devices
        self.latencies = [math.nan] * fleet.texts
        self.begun = self.rounds = self.drafted = self.accepted = self.passes = self.tokens = self.bytes_up = 0

    def outcome(self) -> Outcome:
        if self.fleet.rate is None:
            for device in range(min(self.fleet.devices, self.fleet.texts)):
                self._next(device)
        else:
            self._arrive(self.fleet.rate)
        seconds = self.clock.run()
        busy = sum(target.worked for target in self.targets) / (seconds * len(self.targets)) if seconds else 0.0
        return Outcome(
            seconds, self.tokens, tuple(self.latencies), self.rounds, self.drafted, self.accepted, self.passes, busy,
            self.bytes_up,
        )  # fmt: skip

    def _job(self) -> _Job:
        text = self.recording.texts[self.begun % len(self.recording.texts)]
        controller = None if self.fleet.controller is None else self.fleet.controller()
        self.begun += 1
        return _Job(self.begun - 1, text, self.clock.now, controller)

    def _next(self, device: int) -> None:
        """The device's next text, where there is one."""
        if self.waiting[device]:
            job = self.waiting[device].pop(0)
        elif self.fleet.rate is None and self.begun < self.fleet.texts:
            job = self._job()
        else:
            self.working[device] = False
            return
        self.working[device] = True
        job.target, job.device = self._routed(), device
        job.target.texts += 1
        self._draft(device, job)

    def _arrive(self, rate: float) -> None:
        def one() -> None:
            device = self.begun % self.fleet.devices
            self.waiting[device].append(self._job())
            if not self.working[device]:
                self._next(device)
            if self.begun < self.fleet.texts:
                self.clock.after(self.chance.expovariate(rate), one)

        self.clock.after(self.chance.expovariate(rate), one)

    def _routed(self) -> _Target:
        fleet = self.fleet
        if fleet.routing == "random":
            return self.chance.choice(self.targets)
        if fleet.routing == "round_robin":
            return self.targets[sum(target.texts for target in self.targets) % fleet.targets]
        return min(self.targets, key=lambda target: len(target.queue) + target.busy)

    def _draft(self, device: int, job: _Job) -> None:
        job.drafted = 0 if job.controller is None else job.text.round(job.at, job.controller.window)[0]
        job.draft_s = job.drafted * self.fleet.costs.draft_s
        size = HEADERS + ROUND_BYTES + TOKEN_BYTES * job.drafted
        if job.at == 0:
            size += HEADERS + OPENING_BYTES + TOKEN_BYTES * job.text.source
        self.bytes_up += size

        def send() -> None:
            job.sent = self.clock.now
            self.clock.after(self.fleet.link.one_way(size, self.chance), lambda: self._queue(job))

        self.clock.after(job.draft_s, send)

    def _queue(self, job: _Job) -> None:
        assert job.target is not None
        job.target.queue.append(job)
        self._serve(job.target)

    def _serve(self, target: _Target) -> None:
        if target.busy or not target.queue:
            return
        batch = self._batch(target)
        seconds = self.fleet.costs.verify.seconds(len(batch), sum(job.drafted + 1 for job in batch))
        target.busy, target.worked = True, target.worked + seconds
        self.passes += 1

        def done() -> None:
            target.busy = False
            for job in batch:
                self._judged(job)
            self._serve(target)

        self.clock.after(seconds, done)

    def _batch(self, target: _Target) -> list[_Job]:
        order = list(target.queue)
        if self.fleet.batching == "length" and len(order) > self.fleet.rows:
            first = order[0]
            order = [first, *sorted(order[1:], key=lambda job: abs(job.drafted - first.drafted))]
        batch = order[: self.fleet.rows]
        target.queue = [job for job in target.queue if job not in batch]
        return batch

    def _judged(self, job: _Job) -> None:
        before = job.at
        _, kept, job.at = job.text.round(job.at, job.drafted)
        self.rounds += 1
        self.drafted += job.drafted
        self.accepted += kept
        self.tokens += job.at - before
        device = job.device
        if job.controller is None and job.at < len(job.text):
            # Nobody drafts, so nothing is waited for.
            assert job.target is not None
            job.target.queue.append(job)
            return
        back = self.fleet.link.one_way(HEADERS + ROUND_BYTES, self.chance)
        self.clock.after(back, lambda: self._answered(device, job, kept))

    def _answered(self, device: int, job: _Job, kept: int) -> None:
        if job.controller is not None:
            job.controller.learn(job.drafted, kept, self.clock.now - job.sent, job.draft_s)
        if job.at < len(job.text):
            self._draft(device, job)
            return
        self.latencies[job.index] = self.clock.now - job.arrived
        self._next(device)


def simulate_fleet(fleet: Fleet, recording: Recording) -> Outcome:
    """Let a fleet decode.

    Args:
        fleet: what is simulated.
        recording: what stays of drafts.
    """
    return _Run(fleet, recording).outcome()
