"""Threads that compute: how many a product there has."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def with_threads_of_here(work: Callable[P, T]) -> Callable[P, T]:
    """Work for a new thread, whose products have as many threads as those of the one that hands it over.

    Left alone, a new thread has as many as the machine has cores.
    """
    threads = torch.get_num_threads()

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        torch.set_num_threads(threads)
        return work(*args, **kwargs)

    return run
