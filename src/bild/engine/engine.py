"""The engine: callers hand in texts from any thread, one thread decodes them all, turn by turn."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch

from bild.decoding import Commit, Fixed, Pace, Rules
from bild.engine.admission import Admission, Limits, cells
from bild.engine.lane import Lane
from bild.engine.opening import Job, Open
from bild.engine.tickets import Event, Failed, Failure, Finished, Place, Sink, Ticket, Written, unread
from bild.errors import BusyError, StoppedError

logger = logging.getLogger("bild.engine")
CLEAN_TURNS = 500
"""Turns without a lack of memory after which one more row is tried."""
RECENT = 0.1
"""Weight of the newest text in the average of seconds a text."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine has to do at the moment."""

    rows: int
    """Texts that have a row."""
    waiting: int
    """Texts that wait for one."""
    requests: int
    """Requests that have a place."""
    tokens: int
    """Tokens of sources and prompts that wait for a row."""
    cells: int
    """Tokens that memory is reserved for."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What happened in a turn, for whoever counts."""

    seconds: float
    commits: Sequence[Commit]
    failed: Sequence[Failed]
    finished: Sequence[Finished]


@dataclass
class _Told:
    """What a turn has to tell, by who asked."""

    events: dict[int, tuple[Sink, list[Event]]] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)

    def add(self, ticket: Ticket, event: Event) -> None:
        self.events.setdefault(id(ticket.sink), (ticket.sink, []))[1].append(event)
        if isinstance(event, Written):
            self.commits.append(event.commit)
        elif isinstance(event, Failed):
            self.failed.append(event)
        else:
            self.finished.append(event)


class Engine:
    """Decodes the texts of many callers together; every ticket ends with exactly one ``Finished`` or ``Failed``.

    Only the thread that runs it touches torch. A pass that fails takes nobody along but the row that made it fail;
    if the models fail whatever they are given, every ticket is told so and :attr:`alive` says no.

    Args:
        open: makes batches, see :func:`~bild.engine.opener`.
        limits: of rows, memory and queue.
        pace: how long drafts may be; default: as long as the policies say.
        clock: seconds; another one in tests.
        watch: is handed every turn, on the engine's thread.
    """

    def __init__(
        self,
        open: Open,
        limits: Limits | None = None,
        *,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[Turn], None] | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.alive = True
        """Whether it can still decode."""
        self.draining = False
        """Whether it takes on nothing more."""
        self.last_turn = clock()
        """When the last turn ended, by the clock."""
        self.watch = watch
        self._clock = clock
        self._admission = Admission(self.limits, self.limits.rows)
        self.pace: Pace = Fixed() if pace is None else pace
        self._lanes = {alone: Lane(open, alone, self._tell, self._fail, self.pace, clock) for alone in (False, True)}
        self._ids = count()
        self._changed = threading.Condition()
        # All below is shared between threads and touched under the lock of the condition only.
        self._waiting: deque[Ticket] = deque()
        self._active: dict[int, Ticket] = {}
        self._cancelled: set[int] = set()
        self._places: set[Place] = set()
        self._stopping = False
        # And this is the engine's own.
        self._told = _Told()
        self._clean = 0
        self._text_s = 0.1
        self._thread: threading.Thread | None = None

    # What callers do, on any thread.

    def reserve(self) -> Place:
        """Take a place in the queue, before any work is put into a request.

        Raises:
            BusyError: too many requests are waiting, or too many tokens.
            StoppedError: the engine takes on nothing more.
        """
        with self._changed:
            self._check_open()
            waiting = sum(place.waiting for place in self._places)
            if waiting >= self.limits.queue:
                raise BusyError(f"{waiting} requests are waiting, as many as may; try again later", self._retry_s())
            self._check_tokens(1)
            place = Place()
            self._places.add(place)
            return place

    def claim(self, place: Place, jobs: Sequence[Job]) -> None:
        """Say how much a request will have to read, once that is known; before any of its jobs is handed in.

        Args:
            place: of the request.
            jobs: all of them.

        Raises:
            TooLongError: there is not enough room for one of them, ever.
            BusyError: too many tokens are waiting.
        """
        self.check(jobs)
        tokens = sum(map(unread, jobs))
        with self._changed:
            place.tokens = 0
            self._check_tokens(tokens)
            place.tokens = tokens

    def _check_tokens(self, more: int) -> None:
        waiting, most = sum(place.tokens for place in self._places), self.limits.queue_tokens
        # A request that could never be taken otherwise is taken where nobody else waits.
        if waiting and waiting + more > most:
            raise BusyError(
                f"{waiting} tokens are waiting to be read, and at most {most} may; try again later", self._retry_s()
            )

    def release(self, place: Place) -> None:
        """Give a place back; nothing happens if that was done before."""
        with self._changed:
            place.released, place.waiting, place.tokens = True, False, 0
            self._places.discard(place)
            self._changed.notify_all()

    def submit(self, jobs: Sequence[Job], rules: Rules, sink: Sink, place: Place) -> list[int]:
        """Ask for texts.

        Args:
            jobs: one a text.
            rules: how they are decoded.
            sink: is handed the events of these tickets, once a turn, on the engine's thread.
            place: in the queue, held by the caller until all of its tickets have ended.

        Returns:
            Ids of the tickets.

        Raises:
            TooLongError: a text that there is not enough room for, ever.
            StoppedError: the engine has stopped.
        """
        self.check(jobs)
        now = self._clock()
        tickets = [Ticket(next(self._ids), job, rules, sink, place, now) for job in jobs]
        with self._changed:
            if not self.alive or self._stopping:
                raise StoppedError("the engine has stopped")
            self._waiting += tickets
            self._changed.notify_all()
        return [ticket.id for ticket in tickets]

    def check(self, jobs: Sequence[Job]) -> None:
        """Whether there is room for each of these texts.

        Raises:
            TooLongError: not for one of them, ever.
        """
        for job in jobs:
            self._admission.check(job)

    def cancel(self, tickets: Iterable[int]) -> None:
        """Stop decoding these; they end within a turn. Those that have ended stay as they are."""
        with self._changed:
            self._cancelled |= set(tickets) & {*self._active, *(ticket.id for ticket in self._waiting)}
            self._changed.notify_all()

    def drain(self) -> None:
        """Take on nothing more; who has a place is served to the end."""
        with self._changed:
            self.draining = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop after this turn; what is not complete fails."""
        with self._changed:
            self.draining = self._stopping = True
            self._changed.notify_all()

    @property
    def load(self) -> Load:
        """What there is to do."""
        with self._changed:
            tokens = sum(place.tokens for place in self._places)
            return Load(len(self._active), len(self._waiting), len(self._places), tokens, cells(self._active.values()))

    @property
    def rows(self) -> int:
        """Texts that may be decoded together at the moment: fewer than the limit after a lack of memory."""
        return self._admission.rows

    def healthy(self, patience_s: float = 30) -> bool:
        """Whether it can decode and, if it has something to do, has ended a turn lately.

        Args:
            patience_s: how long a turn may take.
        """
        thread = self._thread is None or self._thread.is_alive()
        idle = not self._active and not self._waiting
        return self.alive and thread and (idle or self._clock() - self.last_turn <= patience_s)

    # What its one thread does.

    def start(self) -> threading.Thread:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="bild-engine", daemon=True)
        self._thread.start()
        return self._thread

    def run(self) -> None:
        """Turn after turn until :meth:`stop`; waits where there is nothing to do."""
        try:
            while not self._stopping:
                if not self.step():
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopping or self._waiting or self._cancelled)
            self._end_all("stopped", "the engine was stopped")
        except BaseException as error:
            # Nobody may wait for a thread that is gone.
            logger.error("the engine has broken down", exc_info=error)
            self._end_all("engine", f"the engine has broken down ({type(error).__name__})")
        finally:
            self.alive = False

    def step(self) -> bool:
        """One turn: who is cancelled leaves, who may begin begins, and every row goes one round further.

        Returns:
            Whether there was anything to do.

        Raises:
            Exception: the models fail whatever they are given; :meth:`run` then ends every ticket.
        """
        start = self._clock()
        gone, new = self._take()
        if not gone and not new and not self._active:
            return False
        try:
            with torch.inference_mode():
                for alone, lane in self._lanes.items():
                    self._go(lane, [ticket for ticket in new if ticket.alone == alone], gone)
        finally:
            self._hand_out(start)
        return True

    def _go(self, lane: Lane, new: Sequence[Ticket], gone: set[int]) -> None:
        if lane.turn(new, gone, self._admission.rows):
            self._clean = 0
            self._admission.rows = max(1, self._admission.rows // 2)
            logger.warning("out of memory: %d rows are decoded together from now on", self._admission.rows)
        elif self._admission.rows < self.limits.rows:
            self._clean += 1
            if self._clean >= CLEAN_TURNS:
                self._clean, self._admission.rows = 0, self._admission.rows + 1

    def _take(self) -> tuple[set[int], list[Ticket]]:
        """Who is cancelled, and who begins."""
        with self._changed:
            gone, self._cancelled = self._cancelled, set()
            left = [ticket for ticket in [*self._waiting, *self._active.values()] if ticket.id in gone]
            self._waiting = deque(ticket for ticket in self._waiting if ticket.id not in gone)
        for ticket in left:
            self._end(ticket, Failed(ticket.id, "cancelled", "cancelled"))
        now = self._clock()
        with self._changed:
            new = self._admission.take(self._waiting, self._active.values())
            for ticket in new:
                ticket.admitted, ticket.place.waiting = now, False
                ticket.place.tokens = max(0, ticket.place.tokens - ticket.unread)
                self._active[ticket.id] = ticket
            if new and len(new) == len(self._active):
                # Nothing was decoded before; a watchdog counts from here.
                self.last_turn = now
        return {ticket.id for ticket in left}, new

    def _tell(self, ticket: Ticket, commit: Commit, rows: int, window: int | None) -> None:
        now = self._clock()
        ticket.first = now if ticket.first is None else ticket.first
        self._told.add(ticket, Written(ticket.id, commit, now - ticket.submitted, rows, window))
        if commit.finish_reason is not None:
            admitted = now if ticket.admitted is None else ticket.admitted
            self._text_s += RECENT * (now - admitted - self._text_s)
            since = ticket.submitted
            self._end(ticket, Finished(ticket.id, admitted - since, ticket.first - since, now - since))

    def _fail(self, ticket: Ticket, reason: str) -> None:
        logger.warning("ticket %d failed: %s", ticket.id, reason)
        self._end(ticket, Failed(ticket.id, "row", reason))

    def _end(self, ticket: Ticket, event: Finished | Failed) -> None:
        if not ticket.ended:
            ticket.ended = True
            self._told.add(ticket, event)
        with self._changed:
            self._active.pop(ticket.id, None)

    def _end_all(self, failure: Failure, message: str) -> None:
        with self._changed:
            self.alive, self._stopping = False, True
            left = [*self._active.values(), *self._waiting]
            self._waiting.clear()
        for ticket in left:
            self._end(ticket, Failed(ticket.id, failure, message))
        self._hand_out(self._clock())

    def _hand_out(self, start: float) -> None:
        told, self._told = self._told, _Told()
        self.last_turn = self._clock()
        for sink, events in told.events.values():
            try:
                sink(events)
            except Exception:
                # Whoever asked is gone.
                self.cancel(event.ticket for event in events if isinstance(event, Written))
        if self.watch is not None:
            try:
                self.watch(Turn(self.last_turn - start, told.commits, told.failed, told.finished))
            except Exception:
                logger.exception("a turn could not be counted")

    def _check_open(self) -> None:
        if not self.alive:
            raise StoppedError("the engine has stopped")
        if self.draining:
            raise StoppedError("the engine is being shut down and takes on nothing more")

    def _retry_s(self) -> float:
        """When somebody who waits now may have been served."""
        texts = len(self._waiting) + len(self._active)
        return float(min(60, max(1, math.ceil(texts * self._text_s / self._admission.rows))))
