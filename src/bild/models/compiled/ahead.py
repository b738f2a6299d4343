"""Work of the large model that nobody waits for yet, on a core that has nothing else to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def has_idle_cores() -> bool:
    """Whether a product of this thread leaves cores alone."""
    return torch.get_num_threads() < (os.cpu_count() or 1)


def begin(work: Callable[[], T]) -> Future[T]:
    """Do it in another thread, whose products have as many threads as those of this one."""
    threads = torch.get_num_threads()

    def run() -> T:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return work()

    return _workers().submit(run)


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="bild-ahead")


# A forked process has none of the threads.
os.register_at_fork(after_in_child=_workers.cache_clear)
