"""Compiled graphs on disk: where they are, how much they take, and which of them go first."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from bild.cache import cache_folder
from bild.errors import InputError

logger = logging.getLogger("bild")

LIMIT_GB = 32.0
"""Room for all graphs, in 10⁹ bytes, unless ``$BILD_CACHE_GB`` names another. A graph holds a copy of its weights."""
SUFFIX = ".pt2"


@dataclass(frozen=True)
class GraphFile:
    """One compiled graph."""

    name: str
    bytes: int
    used: float
    """When it was last loaded, in seconds since 1970."""


def graph_folder() -> Path:
    """The folder of the graphs."""
    return cache_folder() / "compiled"


def file_of(name: str) -> Path:
    """Where a compiled graph is kept."""
    return graph_folder() / f"{name}{SUFFIX}"


def limit_bytes() -> float:
    """Room for all graphs.

    Raises:
        InputError: ``$BILD_CACHE_GB`` is no number above zero.
    """
    named = os.environ.get("BILD_CACHE_GB")
    if not named:
        return LIMIT_GB * 1e9
    try:
        limit = float(named)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise InputError(f"BILD_CACHE_GB is {named!r}; give a number of gigabytes above 0")
    return limit * 1e9


def kept() -> list[GraphFile]:
    """All graphs, the one last used first."""
    return _graphs(graph_folder())


def clear(names: list[str] | None = None) -> int:
    """Remove graphs; pairs that need them are compiled again.

    Args:
        names: which, None for all.

    Returns:
        The bytes that are free now.
    """
    freed = 0
    for graph in kept():
        if names is None or graph.name in names:
            freed += _remove(file_of(graph.name), graph.bytes)
    return freed


def used(file: Path) -> None:
    """Note that a graph was loaded."""
    try:
        os.utime(file)
    except OSError:  # a folder of somebody else's: the order of going is theirs, too
        logger.debug("cannot note that %s was used", file)


def make_room(folder: Path, keep: Path) -> None:
    """Remove the graphs that were not used for longest until the rest fits; never ``keep``."""
    graphs, limit = _graphs(folder), limit_bytes()
    total = sum(graph.bytes for graph in graphs)
    for graph in reversed(graphs):
        if total <= limit:
            return
        file = folder / f"{graph.name}{SUFFIX}"
        if file != keep:
            logger.info("removing %s, which was not used for longest; BILD_CACHE_GB keeps more", graph.name)
            total -= _remove(file, graph.bytes)


def _graphs(folder: Path) -> list[GraphFile]:
    found = []
    for file in folder.glob(f"*{SUFFIX}"):
        try:
            facts = file.stat()
        except OSError:  # another process has removed it
            continue
        found.append(GraphFile(file.stem, facts.st_size, facts.st_mtime))
    return sorted(found, key=lambda graph: graph.used, reverse=True)


def _remove(file: Path, size: int) -> int:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot remove %s (%s)", file, error)
        return 0
    return size
