"""Thresholds for a quality budget: found on dev data, with evidence."""

from bild.tuning.bench import Bench
from bild.tuning.costs import CostModel
from bild.tuning.search import Point, default_grid, pareto
from bild.tuning.simulation import Outcome, Simulator
from bild.tuning.traces import Node, Reader, Tree
from bild.tuning.tune import DEFAULT_BUDGET, Tuning, tune

__all__ = [
    "DEFAULT_BUDGET",
    "Bench",
    "CostModel",
    "Node",
    "Outcome",
    "Point",
    "Reader",
    "Simulator",
    "Tree",
    "Tuning",
    "default_grid",
    "pareto",
    "tune",
]
