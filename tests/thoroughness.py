"""Which of many kinds every run of the tests has."""

from __future__ import annotations

from typing import Any

import pytest


def few(*kinds: Any, keep: int = 1) -> list[Any]:
    """Parameters of a test: the first kinds as they are, the others for ``make test-thorough``."""
    return [*kinds[:keep], *(pytest.param(kind, marks=pytest.mark.thorough) for kind in kinds[keep:])]
