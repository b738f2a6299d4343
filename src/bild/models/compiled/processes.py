"""Compiling several things at once: Python does half of it, which threads would do one after the other.

A process is forked, so what it works on need not be sent to it. It has none of the threads of this one: torch's own
operations run in one thread there, and nothing that OpenMP would run in several may be called.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

from bild.machine import cores

T = TypeVar("T")
WATCHER = "tqdm_monitor"
"""A thread that whoever shows progress leaves behind; it holds nothing that compiling needs."""
PATIENCE_S = 900.0
"""Longest wait for one of them: what hangs is done by this process."""

is_forked = False
"""Whether this is one of them."""


def can_fork() -> bool:
    """Whether another process would find everything as it is, and have a core: a lock that another thread holds would
    stay locked there."""
    others = {thread.name for thread in threading.enumerate()} - {threading.current_thread().name, WATCHER}
    alone = not others and not multiprocessing.current_process().daemon
    return alone and cores() > 1 and "fork" in multiprocessing.get_all_start_methods()


def each(work: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
    """What some work makes of each of several things, a process each, as many at once as there are cores.

    Args:
        work: its results can be pickled; what else it changes in memory is lost.
        items: handed on as they are.

    Raises:
        RuntimeError: one of them failed, was killed or hangs.
    """
    running: list[_Forked[T]] = []
    results: list[Any] = []
    try:
        for item in items:
            running.append(_Forked(work, item))
            if len(running) - len(results) >= cores():
                results.append(running[len(results)].result())
        return results + [forked.result() for forked in running[len(results) :]]
    finally:
        for forked in running:
            forked.end()


@contextmanager
def aside(work: Callable[[], Any], found: Callable[[Any], None]) -> Iterator[None]:
    """Within, another process does some work, of which what it leaves on disk counts.

    Args:
        work: as for :func:`each`, of nothing.
        found: told its result when this process has done its own; not where it failed.
    """
    forked = _Forked(lambda _: work(), None)
    try:
        yield
        try:
            result = forked.result()
        except RuntimeError:
            return
        found(result)
    finally:
        forked.end()


class _Forked(Generic[T]):
    """A process that does some work of one thing."""

    def __init__(self, work: Callable[[T], Any], item: T) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_send, args=(work, item, theirs, torch.get_num_threads()), daemon=True)
        self._process.start()
        theirs.close()

    def result(self) -> Any:
        """What came of it."""
        if not self._pipe.poll(PATIENCE_S):
            raise RuntimeError(f"a process that compiled has said nothing for {PATIENCE_S:g} s")
        try:
            result, error = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a process that compiled ended with {self._process.exitcode}") from None
        if error is not None:
            raise RuntimeError(error)
        return result

    def end(self) -> None:
        """Let it do no more."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _send(work: Callable[[T], Any], item: T, pipe: Any, threads: int) -> None:
    global is_forked
    is_forked = True
    # Whoever started it is told, and ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("bild").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    # What is compiled is for as many threads as there were.
    torch.get_num_threads = lambda: threads
    try:
        pipe.send((work(item), None))
    except Exception as error:  # whatever it is, the process that asked says it
        pipe.send((None, f"{type(error).__name__}: {error}"))
