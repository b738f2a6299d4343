"""What goes in and what it is compared with: examples from files and the hub, quality metrics, settings of a run."""

from bild.data.examples import Data, Example, distinct_names, read_examples, read_sets
from bild.data.quality import QualityMetric, metrics, quality_metric
from bild.data.settings import claim

__all__ = [
    "Data",
    "Example",
    "QualityMetric",
    "claim",
    "distinct_names",
    "metrics",
    "quality_metric",
    "read_examples",
    "read_sets",
]
