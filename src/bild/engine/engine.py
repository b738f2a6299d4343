"""The engine: callers hand in texts from any thread; one thread, or several side by side, decode them, turn by turn."""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch

from bild.decoding import Commit, Fixed, Pace, Rules
from bild.decoding.threads import with_threads_of_here
from bild.engine.admission import Admission, Limits, cells
from bild.engine.lane import Lane
from bild.engine.opening import Job, Open
from bild.engine.prefix_cache import PrefixCache
from bild.engine.tickets import Event, Failed, Failure, Finished, Place, Sink, Ticket, Written, unread
from bild.errors import BusyError, StoppedError, check_count

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


class _Worker:
    """One thread's own: its batches, the tickets that have a row there, and what a turn has to tell.

    Args:
        number: names it.
    """

    def __init__(self, number: int, now: float) -> None:
        self.number, self.last_turn = number, now
        self.batches: dict[tuple[bool, bool], Lane] = {}
        """By whether the small model decodes alone, and whether texts are searched."""
        self.active: set[int] = set()
        self.told = _Told()
        self.clean = 0
        self.thread: threading.Thread | None = None


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

    Only threads that run it touch torch. Several of them (lanes) share the models and the queue, each with rows of
    its own: where products are small, two lanes of one thread serve more than one of two. A pass that fails takes
    nobody along but the row that made it fail; if the models fail whatever they are given, every ticket is told so
    and :attr:`alive` says no.

    Args:
        open: makes batches, see :func:`~bild.engine.opener`.
        limits: of rows, memory and queue.
        lanes: threads that decode side by side, 1…, each with ``torch.get_num_threads()`` for its products.
        pace: how long drafts may be; default: as long as the policies say.
        prefixes: what was read of texts that ended; None: every prompt is read whole.
        clock: seconds; another one in tests.
        watch: is handed every turn, on the thread it was made by.

    Raises:
        InputError: not a number of lanes.
    """

    def __init__(
        self,
        open: Open,
        limits: Limits | None = None,
        *,
        lanes: int = 1,
        pace: Pace | None = None,
        prefixes: PrefixCache | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: Callable[[Turn], None] | None = None,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.alive = True
        """Whether it can still decode."""
        self.draining = False
        """Whether it takes on nothing more."""
        self.watch = watch
        self._clock = clock
        self._admission = Admission(self.limits, self.limits.rows)
        self.pace: Pace = Fixed() if pace is None else pace
        check_count("lanes", lanes)
        self._workers = [_Worker(number, clock()) for number in range(lanes)]
        for worker in self._workers:
            own = self.pace if worker.number == 0 else copy.deepcopy(self.pace)
            told = partial(self._tell, worker), partial(self._fail, worker)
            # What a beam search takes says nothing of how long drafts of others should be.
            worker.batches = {
                (alone, searched): Lane(
                    open, alone, *told, Fixed() if searched else own, clock, None if searched else prefixes
                )
                for searched in (False, True)
                for alone in (False, True)
            }
        self._ids = count()
        self._changed = threading.Condition()
        # All below is shared between threads and touched under the lock of the condition only.
        self._waiting: deque[Ticket] = deque()
        self._active: dict[int, Ticket] = {}
        self._cancelled: set[int] = set()
        self._places: set[Place] = set()
        self._stopping = False
        self._changes = 0
        self._farewell: tuple[Failure, str] | None = None
        self._text_s = 0.1

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

    def claim(self, place: Place, jobs: Sequence[Job], rules: Rules) -> None:
        """Say how much a request will have to read, once that is known; before any of its jobs is handed in.

        Args:
            place: of the request.
            jobs: all of them.
            rules: how they are decoded.

        Raises:
            TooLongError: there is not enough room for one of them, ever.
            BusyError: too many tokens are waiting.
        """
        self.check(jobs, rules)
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

    def submit(self, jobs: Sequence[Job], rules: Rules, sink: Sink, place: Place, *, live: bool = True) -> list[int]:
        """Ask for texts.

        Args:
            jobs: one a text.
            rules: how they are decoded.
            sink: is handed the events of these tickets, once a turn, on the thread that decodes them.
            place: in the queue, held by the caller until all of its tickets have ended.
            live: whether each round is waited for; else a turn may play several of them in one call.

        Returns:
            Ids of the tickets.

        Raises:
            TooLongError: a text that there is not enough room for, ever.
            StoppedError: the engine has stopped.
        """
        self.check(jobs, rules)
        now = self._clock()
        tickets = [Ticket(next(self._ids), job, rules, sink, place, now, live) for job in jobs]
        with self._changed:
            if not self.alive or self._stopping:
                raise StoppedError("the engine has stopped")
            self._waiting += tickets
            self._notify()
        return [ticket.id for ticket in tickets]

    def check(self, jobs: Sequence[Job], rules: Rules) -> None:
        """Whether there is room for each of these texts, under these rules.

        Raises:
            TooLongError: not for one of them, ever.
        """
        for job in jobs:
            self._admission.check(job, rules)

    def cancel(self, tickets: Iterable[int]) -> None:
        """Stop decoding these; they end within a turn. Those that have ended stay as they are."""
        with self._changed:
            self._cancelled |= set(tickets) & {*self._active, *(ticket.id for ticket in self._waiting)}
            if self._cancelled:
                self._notify()

    def drain(self) -> None:
        """Take on nothing more; who has a place is served to the end."""
        with self._changed:
            self.draining = True

    def stop(self) -> None:
        """Stop after this turn; what is not complete fails."""
        with self._changed:
            self.draining = self._stopping = True
            self._notify()

    def _notify(self) -> None:
        """Something has changed that who waits may act on."""
        self._changes += 1
        self._changed.notify_all()

    @property
    def last_turn(self) -> float:
        """When the last turn ended, by the clock; with several lanes, that of the busy one which is furthest behind."""
        busy = [worker.last_turn for worker in self._workers if worker.active]
        return min(busy) if busy else max(worker.last_turn for worker in self._workers)

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
        thread = all(worker.thread is None or worker.thread.is_alive() for worker in self._workers)
        idle = not self._active and not self._waiting
        return self.alive and thread and (idle or self._clock() - self.last_turn <= patience_s)

    # What its threads do.

    def start(self) -> threading.Thread:
        """Run in threads of its own, and return one that ends when all have."""
        run, threads = with_threads_of_here(self.run), []
        for worker in self._workers:
            name = "bild-engine" + (f"-{worker.number}" if worker.number else "")
            worker.thread = threading.Thread(target=run, args=(worker.number,), name=name, daemon=True)
            threads.append(worker.thread)
        for thread in threads:
            thread.start()
        if len(threads) == 1:
            return threads[0]
        last = threading.Thread(target=_join_all, args=(threads,), daemon=True)
        last.start()
        return last

    def run(self, lane: int = 0) -> None:
        """Turn after turn until :meth:`stop`; waits where there is nothing to do.

        Args:
            lane: which one.
        """
        worker = self._workers[lane]
        try:
            while not self._stopping:
                seen = self._changes
                if not self.step(lane):
                    with self._changed:
                        # What was refused a row for now is asked for again when something has changed.
                        self._changed.wait_for(partial(self._has_changed, seen))
            self._end_all(worker, "stopped", "the engine was stopped")
        except BaseException as error:
            # Nobody may wait for a thread that is gone.
            logger.error("the engine has broken down", exc_info=error)
            self._end_all(worker, "engine", f"the engine has broken down ({type(error).__name__})")
        finally:
            self.alive = False

    def _has_changed(self, seen: int) -> bool:
        return self._stopping or self._changes != seen

    def step(self, lane: int = 0) -> bool:
        """One turn: who is cancelled leaves, who may begin begins, and every row goes one round further.

        Args:
            lane: whose turn it is.

        Returns:
            Whether there was anything to do.

        Raises:
            Exception: the models fail whatever they are given; :meth:`run` then ends every ticket.
        """
        start, worker = self._clock(), self._workers[lane]
        gone, new = self._take(worker)
        if not gone and not new and not worker.active:
            return False
        try:
            with torch.inference_mode():
                for kind, batch in worker.batches.items():
                    self._go(worker, batch, [each for each in new if (each.alone, each.searched) == kind], gone)
        finally:
            self._hand_out(worker, start)
        return True

    def _go(self, worker: _Worker, batch: Lane, new: Sequence[Ticket], gone: set[int]) -> None:
        if batch.turn(new, gone, self._admission.rows):
            worker.clean = 0
            self._admission.rows = max(1, self._admission.rows // 2)
            logger.warning("out of memory: %d rows are decoded together from now on", self._admission.rows)
        elif self._admission.rows < self.limits.rows:
            worker.clean += 1
            if worker.clean >= CLEAN_TURNS:
                worker.clean, self._admission.rows = 0, self._admission.rows + 1

    def _take(self, worker: _Worker) -> tuple[set[int], list[Ticket]]:
        """Who is cancelled, and who begins, as far as it is this one's affair."""
        with self._changed:
            others = {id for id in self._cancelled if id in self._active and id not in worker.active}
            gone, self._cancelled = self._cancelled - others, others
            left = [ticket for ticket in [*self._waiting, *self._active.values()] if ticket.id in gone]
            self._waiting = deque(ticket for ticket in self._waiting if ticket.id not in gone)
        for ticket in left:
            self._end(worker, ticket, Failed(ticket.id, "cancelled", "cancelled"))
        now = self._clock()
        with self._changed:
            # As many as each has if all share what there is, and the rows.
            there = min(self._admission.rows, len(self._waiting) + len(self._active))
            share = math.ceil(there / len(self._workers)) - len(worker.active)
            new = self._admission.take(self._waiting, self._active.values(), share)
            for ticket in new:
                ticket.admitted, ticket.place.waiting = now, False
                ticket.place.tokens = max(0, ticket.place.tokens - ticket.unread)
                self._active[ticket.id] = ticket
            if new and not worker.active:
                # Nothing was decoded before; a watchdog counts from here.
                worker.last_turn = now
            worker.active |= {ticket.id for ticket in new}
        return {ticket.id for ticket in left}, new

    def _tell(self, worker: _Worker, ticket: Ticket, commit: Commit, rows: int, window: int | None) -> None:
        now = self._clock()
        if commit.tokens and ticket.first is None:
            ticket.first = now
        worker.told.add(ticket, Written(ticket.id, commit, now - ticket.submitted, rows, window))
        if commit.finish_reason is not None:
            admitted = now if ticket.admitted is None else ticket.admitted
            self._text_s += RECENT * (now - admitted - self._text_s)
            since, first = ticket.submitted, now if ticket.first is None else ticket.first
            prompt = ticket.row.prompt_length
            times = admitted - since, first - since, now - since
            self._end(worker, ticket, Finished(ticket.id, *times, prompt, ticket.known))

    def _fail(self, worker: _Worker, ticket: Ticket, reason: str) -> None:
        logger.warning("ticket %d failed: %s", ticket.id, reason)
        self._end(worker, ticket, Failed(ticket.id, "row", reason))

    def _end(self, worker: _Worker, ticket: Ticket, event: Finished | Failed) -> None:
        if not ticket.ended:
            ticket.ended = True
            worker.told.add(ticket, event)
        with self._changed:
            self._active.pop(ticket.id, None)
            worker.active.discard(ticket.id)
            if self._waiting:
                # There is a row for somebody, whoever takes it.
                self._notify()

    def _end_all(self, worker: _Worker, failure: Failure, message: str) -> None:
        """End what this one has and what waits; the others do so with theirs, for the first one's reason."""
        with self._changed:
            self.alive, self._stopping = False, True
            self._farewell = (failure, message) if self._farewell is None else self._farewell
            failure, message = self._farewell
            left = [*(self._active[id] for id in worker.active if id in self._active), *self._waiting]
            self._waiting.clear()
            self._notify()
        for ticket in left:
            self._end(worker, ticket, Failed(ticket.id, failure, message))
        self._hand_out(worker, self._clock())

    def _hand_out(self, worker: _Worker, start: float) -> None:
        told, worker.told = worker.told, _Told()
        worker.last_turn = self._clock()
        for sink, events in told.events.values():
            try:
                sink(events)
            except Exception:
                # Whoever asked is gone.
                self.cancel(event.ticket for event in events if isinstance(event, Written))
        if self.watch is not None:
            try:
                self.watch(Turn(worker.last_turn - start, told.commits, told.failed, told.finished))
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


def _join_all(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
