"""What a module's forward pass calls the cache it is handed: transformers renamed it in 5.24."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from torch import nn

NAMES = ("cache", "past_key_values")
"""The newest first."""


def cache_argument(module: nn.Module) -> str:
    """The name of the cache among the arguments of a network or of one of its layers."""
    kind: Any = type(module)
    return _cache_argument(kind)


@lru_cache
def _cache_argument(kind: Any) -> str:
    parameters = inspect.signature(kind.forward).parameters
    # A forward pass that hands its keywords on unseen is as old as its own signature says nothing about.
    return next((name for name in NAMES if name in parameters), NAMES[-1])
