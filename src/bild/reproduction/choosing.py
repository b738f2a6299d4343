"""Policies chosen on dev data."""

from __future__ import annotations

from collections.abc import Sequence

from bild.decoding import Policy
from bild.errors import InputError
from bild.reproduction.grids import candidates, speculative
from bild.reproduction.inputs import Variant
from bild.reproduction.workspace import Workspace
from bild.tuning.search import Point

MINIMAL_LOSS, ONE_POINT = 0.3, 1.0
"""Points that the rows "minimal loss" and "within one point" may lose on dev."""


def within(points: Sequence[Point], budget: float) -> Point:
    """The fastest that loses at most ``budget``; where none does, the one that loses least."""
    kept = [point for point in points if point.worst_loss <= budget]
    if kept:
        return min(kept, key=lambda point: point.seconds)
    return min(points, key=lambda point: (point.worst_loss, point.seconds))


def choose(
    workspace: Workspace, variant: Variant, name: str, budget: float, grid: Sequence[Policy] | None = None
) -> Point:
    """The fastest policy of a budget on the dev set that belongs to a test set; of all candidates, or of a grid."""
    return within(workspace.points(variant, name, candidates() if grid is None else grid, "dev"), budget)


def choose_speculative(workspace: Workspace, variant: Variant, name: str) -> Point:
    """The fastest window of greedy speculative decoding on dev; its text is the large model's at every window."""
    return min(workspace.points(variant, name, speculative(), "dev"), key=lambda point: point.seconds)


def match(workspace: Workspace, variant: Variant, name: str, rival: Point) -> tuple[Point, Point]:
    """On dev: the best policy that is no slower than another, and the fastest that is no worse (Table 3)."""
    points = workspace.points(variant, name, candidates(), "dev")
    as_fast = [point for point in points if point.seconds <= rival.seconds] or list(points)
    return min(as_fast, key=lambda point: (point.worst_loss, point.seconds)), within(points, rival.worst_loss)


def need_dev(workspace: Workspace, item: str) -> None:
    """Refuse to choose a policy on the data it is reported on.

    Raises:
        InputError: there are no dev sets.
    """
    if not workspace.inputs.dev:
        raise InputError(f"{item} chooses its policies on dev data; give one --dev for each --data")
