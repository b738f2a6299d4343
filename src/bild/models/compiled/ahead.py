"""Work of the large model that nobody waits for yet, on a core that has nothing else to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

from bild.decoding.threads import with_threads_of_here
from bild.models.compiled import runner

T = TypeVar("T")


def has_idle_cores() -> bool:
    """Whether a product of this thread, and those of the threads that run a graph now, leave cores alone."""
    return torch.get_num_threads() * (1 + runner.running()) < _cores()


def begin(work: Callable[[], T]) -> Future[T]:
    """Do it in another thread, whose products have as many threads as those of this one."""
    return _workers().submit(with_threads_of_here(torch.inference_mode()(work)))


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="bild-ahead")


@cache
def _cores() -> int:
    """Asked of the system once: that takes as long as a small model's token."""
    return os.cpu_count() or 1


# A forked process has none of the threads.
os.register_at_fork(after_in_child=_workers.cache_clear)
