"""Which of many kinds every run of the tests has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(kinds: Iterable[Any], keep: Collection[Any]) -> list[Any]:
    """Parameters of a test: some kinds as they are, the others for ``make test-thorough``."""
    return [kind if kind in keep else pytest.param(kind, marks=pytest.mark.thorough) for kind in kinds]
