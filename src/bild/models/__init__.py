"""What runs a network behind the Scorer contract; the only place that knows transformers' caches."""

from bild.models.calm import CalmModel, CalmScorer, ExitRule
from bild.models.eager import EagerModel, max_positions
from bild.models.eager_scorer import EagerScorer
from bild.models.early_exit import exit_layer
from bild.models.loading import (
    INT8,
    check_exit,
    check_kinds,
    check_outlines,
    check_shared_vocabulary,
    head_size,
    load_config,
    load_network,
    load_tokenizer,
    new_network,
    read_outline,
    resolve_device,
    resolve_dtype,
)
from bild.models.pairing import check_runtime, run_pair
from bild.models.quantize import Int8Linear, to_int8
from bild.models.static import StaticModel, is_prepared

__all__ = [
    "INT8",
    "CalmModel",
    "CalmScorer",
    "EagerModel",
    "EagerScorer",
    "ExitRule",
    "Int8Linear",
    "StaticModel",
    "check_exit",
    "check_kinds",
    "check_outlines",
    "check_runtime",
    "check_shared_vocabulary",
    "exit_layer",
    "head_size",
    "is_prepared",
    "load_config",
    "load_network",
    "load_tokenizer",
    "max_positions",
    "new_network",
    "read_outline",
    "resolve_device",
    "resolve_dtype",
    "run_pair",
    "to_int8",
]
