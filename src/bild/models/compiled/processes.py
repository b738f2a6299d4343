"""Compiling several things at once: Python does half of it, which threads would do one after the other."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
    """What some work makes of each of several things, a process each, as many at once as there are cores.

    Args:
        work: its results can be pickled; what else it changes in memory is lost. Its products run in one thread.
        items: handed on as they are, by forking.

    Raises:
        RuntimeError: one of them failed, or its process was killed; or processes cannot be forked here.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("processes cannot be forked here")
    context = multiprocessing.get_context("fork")
    running: list[tuple[Any, Connection]] = []
    results: list[Any] = []
    try:
        for at in range(len(items)):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(work, items[at], theirs), daemon=True)
            process.start()
            theirs.close()
            running.append((process, ours))
            if len(running) - len(results) >= cores():
                results.append(_received(*running[len(results)]))
        while len(results) < len(items):
            results.append(_received(*running[len(results)]))
    finally:
        for process, pipe in running:
            process.kill()
            process.join()
            pipe.close()
    return results


def _send(work: Callable[[T], Any], item: T, pipe: Connection) -> None:
    # OpenMP's threads are not there in a forked process, and it waits for them for ever.
    torch.set_num_threads(1)
    try:
        pipe.send((work(item), None))
    except Exception as error:  # whatever it is, the process that asked says it
        pipe.send((None, f"{type(error).__name__}: {error}"))


def _received(process: Any, pipe: Connection) -> Any:
    try:
        result, error = pipe.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a process that compiled ended with {process.exitcode}") from None
    if error is not None:
        raise RuntimeError(error)
    return result
