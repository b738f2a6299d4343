"""Thresholds for a quality budget: found on dev data, with evidence."""

from bild.tuning.bench import Bench
from bild.tuning.costs import CostModel
from bild.tuning.grid import default_grid
from bild.tuning.search import Point, pareto
from bild.tuning.simulation import Outcome, Simulator
from bild.tuning.traces import Node, Reader, Tree
from bild.tuning.tune import DEFAULT_BUDGET, DEFAULT_CONFIDENCE, tune
from bild.tuning.tuned import Tuning

__all__ = [
    "DEFAULT_BUDGET",
    "DEFAULT_CONFIDENCE",
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
