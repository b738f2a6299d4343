"""The verifier's end: texts of many devices, whose rounds one thread judges together, pass by pass; nothing is HTTP.

A text that is asked for has a row in the one running batch. What a device does not ask for stays there for a while,
then loses its row, and later its session: all that takes memory ends by itself when a device vanishes. A row is only
ever a copy of a session's tokens, so one that was lost is read again.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from bild.decoding import LocalVerifier, Row, Scorer
from bild.edge.sessions import Refusal, Reply, Session, cells
from bild.edge.wire import GONE, Answer, Proposal
from bild.errors import BusyError, InputError, StoppedError, TooLongError, check_count

logger = logging.getLogger("bild.edge")
READ_TOKENS = 64
"""Tokens of a new prompt that are read in one pass."""
RETRY_S = 1.0


class Starts(Protocol):
    """The large model, as far as verifying needs it."""

    def start(self, sources: Sequence[Sequence[int]]) -> Scorer:
        """Begin a batch of texts that have read nothing."""


@dataclass(frozen=True)
class Limits:
    """What a verifier takes on at once.

    Args:
        rows: texts judged in one pass, 1…
        cells: tokens there is room for, 1…: rows × (longest source + longest text).
        sessions: texts that are open, 1…; those without a row take next to nothing.
        idle_s: silence after which a device is taken to have vanished, in seconds, above 0.
        wait_s: how long a pass waits for more rounds to share it, in seconds, 0…

    Raises:
        InputError: a value out of range.
    """

    rows: int = 32
    cells: int = 65536
    sessions: int = 1024
    idle_s: float = 60.0
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rows", "cells", "sessions"):
            check_count(name, getattr(self, name))
        if not 0 < self.idle_s < math.inf:
            raise InputError(f"idle is {self.idle_s:g} s; allowed is more than 0")
        if not 0 <= self.wait_s < math.inf:
            raise InputError(f"wait is {self.wait_s:g} s; allowed is 0 or more")


Sink = Callable[[dict[int, Reply]], None]
"""Is handed replies by the place of their round in what was asked, on the verifier's thread."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What happened in a pass, for whoever counts."""

    seconds: float
    rounds: int
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Load:
    """What there is to do at the moment."""

    sessions: int
    rows: int
    """Sessions that have a row in the batch."""
    waiting: int
    cells: int

    @property
    def requests(self) -> int:
        """What a server that is told to stop would wait for."""
        return self.sessions + self.waiting


@dataclass(eq=False)
class _Ask:
    session: str
    proposal: Proposal
    place: int
    sink: Sink
    replies: dict[int, Reply]
    left: list[int]
    """Rounds of the same request that have no reply yet; one number, shared."""


@dataclass
class Verification:
    """Judges the rounds of many devices together; every round that was asked gets exactly one reply.

    Only the thread that runs it touches torch.

    Args:
        model: the large one.
        limits: of rows, memory and sessions.
        clock: seconds; another one in tests.
        watch: is handed every pass, on the verifier's thread.
    """

    model: Starts
    limits: Limits = field(default_factory=Limits)
    clock: Callable[[], float] = time.monotonic
    watch: Callable[[Turn], None] | None = None
    alive: bool = True
    draining: bool = False

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._sessions: dict[str, Session] = {}
        self._pending: deque[_Ask] = deque()
        self._stopping = False
        # The thread's own from here on.
        self._resident: list[Session] = []
        self._verifier: LocalVerifier | None = None
        self._thread: threading.Thread | None = None

    # What a server does, on any thread.

    def open(self, texts: Sequence[tuple[Sequence[int], Row]]) -> list[str]:
        """Begin texts.

        Args:
            texts: of each its source and its row.

        Returns:
            Names of the sessions.

        Raises:
            TooLongError: a text that there is not enough room for, ever.
            BusyError: as many are open as may.
            StoppedError: no more are taken on.
        """
        for source, row in texts:
            needed = len(source) + row.prompt_length + row.request.max_new_tokens
            if needed > self.limits.cells:
                raise TooLongError(
                    f"the text needs room for {needed} tokens, and the verifier has room for {self.limits.cells}; "
                    "lower max_new_tokens"
                )
        with self._changed:
            if not self.alive or self.draining:
                raise StoppedError("the verifier is being shut down and takes on nothing more")
            self._expire()
            if len(self._sessions) + len(texts) > self.limits.sessions:
                raise BusyError(f"{len(self._sessions)} texts are open, as many as may; try again later", RETRY_S)
            new = [Session(secrets.token_urlsafe(9), source, row, self.clock()) for source, row in texts]
            self._sessions |= {each.id: each for each in new}
            self._changed.notify_all()
        return [each.id for each in new]

    def ask(self, proposals: Sequence[Proposal], sink: Sink) -> None:
        """Have rounds judged.

        Args:
            proposals: of any sessions, each of them once.
            sink: is handed all replies together.

        Raises:
            StoppedError: the verifier has stopped.
        """
        replies: dict[int, Reply] = {}
        left = [len(proposals)]
        asks = [_Ask(each.session, each, at, sink, replies, left) for at, each in enumerate(proposals)]
        with self._changed:
            if not self.alive or self._stopping:
                raise StoppedError("the verifier has stopped")
            self._pending += asks
            self._changed.notify_all()

    def close(self, ids: Collection[str]) -> int:
        """End texts; those that are not known are passed over. Returns how many ended."""
        with self._changed:
            gone = [each for each in ids if self._sessions.pop(each, None) is not None]
            self._changed.notify_all()
        return len(gone)

    def drain(self) -> None:
        """Take on nothing more; texts that are open go on."""
        with self._changed:
            self.draining = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop after this pass."""
        with self._changed:
            self.draining = self._stopping = True
            self._changed.notify_all()

    @property
    def load(self) -> Load:
        """What there is to do."""
        with self._changed:
            resident = list(self._resident)
            return Load(len(self._sessions), len(resident), len(self._pending), cells(resident))

    def healthy(self) -> bool:
        """Whether it can judge."""
        return self.alive and (self._thread is None or self._thread.is_alive())

    # What its one thread does.

    def start(self) -> threading.Thread:
        """Run in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="bild-verifier", daemon=True)
        self._thread.start()
        return self._thread

    def run(self) -> None:
        """Pass after pass until :meth:`stop`."""
        try:
            while not self._stopping:
                if not self.step():
                    self._wait()
        finally:
            with self._changed:
                self.alive, self._stopping = False, True
                left = list(self._pending)
                self._pending.clear()
            self._tell([(ask, Refusal("stopped", "the verifier has stopped")) for ask in left])

    def step(self) -> bool:
        """Judge what has been asked, as much of it as fits a pass.

        Returns:
            Whether there was anything to do.
        """
        with self._changed:
            self._expire()
            asks = self._take()
        self._release()
        if not asks:
            return False
        start = self.clock()
        with torch.inference_mode():
            told, waiting = self._without_a_pass(asks)
            told += self._judged(waiting) if waiting else []
        if self.watch is not None and waiting:
            answers = [(ask, reply) for ask, reply in told if isinstance(reply, Answer)]
            drafted = sum(len(ask.proposal.draft) for ask, _ in answers)
            kept = sum(reply.accepted for _, reply in answers)
            self.watch(Turn(self.clock() - start, len(waiting), drafted, kept))
        self._tell(told)
        return True

    def _wait(self) -> None:
        with self._changed:
            silence = self.limits.idle_s / 4 if self._sessions else None
            self._changed.wait_for(lambda: self._stopping or self._pending or self._stale(), silence)
            if self._pending and self.limits.wait_s:
                # Others may come to share the pass.
                self._changed.wait_for(
                    lambda: self._stopping or len(self._pending) >= self.limits.rows, self.limits.wait_s
                )

    def _take(self) -> list[tuple[_Ask, Session | None]]:
        """Rounds for this pass, one a session; the others keep their place."""
        taken: dict[str, tuple[_Ask, Session | None]] = {}
        left: deque[_Ask] = deque()
        for ask in self._pending:
            if len(taken) >= self.limits.rows or ask.session in taken:
                left.append(ask)
                continue
            session = self._sessions.get(ask.session)
            chosen = [each for _, each in taken.values() if each is not None]
            if session is not None and cells([*chosen, session]) > self.limits.cells:
                left.append(ask)
                continue
            taken[ask.session] = (ask, session)
            if session is not None:
                session.used = self.clock()
        self._pending = left
        return list(taken.values())

    def _expire(self) -> None:
        """Forget devices that have vanished."""
        now, asked = self.clock(), {ask.session for ask in self._pending}
        for id, session in list(self._sessions.items()):
            if now - session.used > self.limits.idle_s and id not in asked:
                del self._sessions[id]
                logger.info("a device has vanished: session dropped after %.0f s", now - session.used)

    def _stale(self) -> bool:
        """Whether a session that has ended still has a row."""
        return any(session.id not in self._sessions for session in self._resident)

    def _release(self) -> None:
        """Let go of the rows of sessions that have ended."""
        with self._changed:
            still = [session for session in self._resident if session.id in self._sessions]
        self._keep(still)

    def _keep(self, stay: Sequence[Session]) -> None:
        if len(stay) == len(self._resident):
            return
        if self._verifier is not None and stay:
            self._verifier.keep([self._resident.index(session) for session in stay])
        if not stay:
            self._verifier = None
        with self._changed:
            self._resident = list(stay)

    def _without_a_pass(
        self, asks: Sequence[tuple[_Ask, Session | None]]
    ) -> tuple[list[tuple[_Ask, Reply]], list[tuple[_Ask, Session]]]:
        """Replies that need no pass: to rounds asked before, to a device's distribution, to strangers; and the rest."""
        told: list[tuple[_Ask, Reply]] = []
        waiting: list[tuple[_Ask, Session]] = []
        for ask, session in asks:
            at = ask.proposal.at
            if session is None or not session.row.prompt_length <= at <= len(session.row.tokens):
                told.append((ask, Refusal(GONE, "the verifier does not know this text so far; open it anew")))
            elif at + len(ask.proposal.draft) > session.longest:
                told.append((ask, Refusal("too_long", f"the draft leaves the {session.longest} tokens of its text")))
            elif (known := session.known(ask.proposal)) is not None:
                told.append((ask, known))
            else:
                waiting.append((ask, session))
        return told, waiting

    def _judged(self, waiting: list[tuple[_Ask, Session]]) -> list[tuple[_Ask, Reply]]:
        """Replies of one pass. Where it fails everybody is tried alone, so that nobody suffers for another."""
        asked = [session for _, session in waiting]
        try:
            return self._pass(waiting)
        except Exception as error:
            alone = len(asked) == 1 and all(session in asked for session in self._resident)
            self._forget_all()
            if alone:
                return [(waiting[0][0], Refusal.of(error))]
            logger.warning("a pass of %d texts failed (%s): each is tried alone", len(waiting), type(error).__name__)
        return [told for each in waiting for told in self._judged([each])]

    def _forget_all(self) -> None:
        self._verifier = None
        with self._changed:
            self._resident = []

    def _pass(self, waiting: Sequence[tuple[_Ask, Session]]) -> list[tuple[_Ask, Reply]]:
        for ask, session in waiting:
            session.rewind(ask.proposal)
        verifier = self._admit([session for _, session in waiting])
        rows = [session.row for session in self._resident]
        verifier.truncate([len(row.tokens) - 1 for row in rows])
        proposals = {session.id: ask.proposal for ask, session in waiting}
        drafts = [session.draft(proposals.get(session.id)) for session in self._resident]
        try:
            verdicts = verifier.verify(rows, drafts)
        except Exception:
            for _, session in waiting:
                del session.row.tokens[session.row.committed :]
            raise
        by_id = {session.id: verdict for session, verdict in zip(self._resident, verdicts, strict=True)}
        told: list[tuple[_Ask, Reply]] = [
            (ask, session.answer(ask.proposal, by_id[session.id])) for ask, session in waiting
        ]
        verifier.truncate([len(row.tokens) - 1 for row in rows])
        return told

    def _admit(self, asked: Sequence[Session]) -> LocalVerifier:
        """Give every session that is asked for a row; who was not asked for longest makes room."""
        new = [session for session in asked if session not in self._resident]
        if new:
            self._make_room(asked, new)
            joining = LocalVerifier(self.model.start([list(session.source) for session in new]))
            if max(session.row.prompt_length for session in new) > READ_TOKENS:
                while not joining.read([session.row for session in new], READ_TOKENS):
                    pass
            if self._verifier is None:
                self._verifier = joining
            else:
                self._verifier.join(joining)
            with self._changed:
                self._resident = [*self._resident, *new]
        assert self._verifier is not None
        return self._verifier

    def _make_room(self, asked: Sequence[Session], new: Sequence[Session]) -> None:
        idle = sorted((each for each in self._resident if each not in asked), key=lambda each: each.used)
        stay = list(self._resident)
        while idle and (len(stay) + len(new) > self.limits.rows or cells([*stay, *new]) > self.limits.cells):
            stay.remove(idle.pop(0))
        self._keep(stay)

    def _tell(self, told: Sequence[tuple[_Ask, Reply]]) -> None:
        for ask, reply in told:
            ask.replies[ask.place] = reply
            ask.left[0] -= 1
            if not ask.left[0]:
                try:
                    ask.sink(ask.replies)
                except Exception:
                    # Whoever asked is gone; its sessions end by themselves.
                    logger.info("nobody waits for an answer any more")
