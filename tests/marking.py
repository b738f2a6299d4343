"""The marker ``compiles``: whoever compiles a graph, or reads one that was, has it; whoever has not finds none.

A graph takes ten to sixty seconds, so ``pytest -m "not compiles"`` is what one runs while writing. That an unmarked
test fails where it would compile keeps it short, also where an earlier test has compiled the graph already.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from bild.models import CompiledModel
from bild.models.compiled import compiling

NAME = "compiles"
SAYS = "this test compiles a graph, or reads one that another test has compiled: mark it with @pytest.mark.compiles"


def marks_of(runtime: str) -> Any:
    """Of a parameter that runs networks so."""
    return pytest.mark.compiles if runtime == "static" else ()


def with_runtime(names: Any, runtime: str) -> list[Any]:
    """Parameters ``(name, runtime)``."""
    return [pytest.param(name, runtime, marks=marks_of(runtime)) for name in names]


class Graphs:
    """Where graphs are, and whether the test that runs may have any.

    Args:
        kept: folder of the graphs, which go on to the next run.
        none: folder in which unmarked tests, and processes that they start, find no graph.
    """

    def __init__(self, kept: Path, none: Path) -> None:
        self.kept, self.none, self.marked = kept, none, False

    def enter(self, item: pytest.Item) -> None:
        """Before the fixtures of a test, some of which load models."""
        self.marked = item.get_closest_marker(NAME) is not None
        os.environ["BILD_CACHE"] = str(self.kept if self.marked else self.none)

    def leave(self) -> None:
        """After a test: what it let another process compile is there."""
        left = [] if self.marked else [*self.none.glob("compiled/*.pt2")]
        for file in left:
            file.unlink()
        if left:
            pytest.fail(SAYS, pytrace=False)

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Fails in unmarked tests; no ``except Exception`` of bild's hides that."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.marked:
                pytest.fail(SAYS, pytrace=False)
            return function(*args, **kwargs)

        return call

    @contextmanager
    def guard(self) -> Iterator[None]:
        """For as long as tests run."""
        start = CompiledModel.start

        def started(model: CompiledModel, *args: Any, **kwargs: Any) -> Any:
            run = self.guarded(start) if model.is_compiled and not model.graphs.is_recorded else start
            return run(model, *args, **kwargs)

        with ExitStack() as stack:
            stack.enter_context(patch.object(compiling, "_compile", self.guarded(compiling._compile)))
            stack.enter_context(patch.object(compiling, "_load", self.guarded(compiling._load)))
            stack.enter_context(patch.object(CompiledModel, "start", started))
            yield
