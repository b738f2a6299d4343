"""Quality and speed of any set of methods on the same texts.

methods = load_methods(parse_methods("large,small,bild"), Setup())
data = read_examples("test.jsonl", limit=300)
summary = evaluate(methods.methods, data.examples, failed=methods.failed, out="run")
"""

from bild.data.examples import Data, Example, read_examples
from bild.evaluation.bootstrap import Estimate
from bild.evaluation.memory import PeakMemory, measure_memory
from bild.evaluation.method import Method, MethodSpec, Output, PeerContext
from bild.evaluation.roster import Roster, Setup, load_methods, parse_methods
from bild.evaluation.run import evaluate
from bild.evaluation.summary import MethodFigures, SetFigures, Summary

__all__ = [
    "Data",
    "Estimate",
    "Example",
    "Method",
    "MethodFigures",
    "MethodSpec",
    "Output",
    "PeakMemory",
    "PeerContext",
    "Roster",
    "SetFigures",
    "Setup",
    "Summary",
    "evaluate",
    "load_methods",
    "measure_memory",
    "parse_methods",
    "read_examples",
]
