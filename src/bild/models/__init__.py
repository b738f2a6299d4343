"""What runs a network behind the Scorer contract; the only place that knows transformers' caches."""

from bild.models.calm import CalmModel, CalmScorer, ExitRule
from bild.models.eager import EagerModel, EagerScorer
from bild.models.loading import INT8, load_network, load_tokenizer, resolve_device, resolve_dtype
from bild.models.quantize import Int8Linear, to_int8
from bild.models.static import StaticModel, is_prepared
from bild.models.vocabulary import check_shared_vocabulary

__all__ = [
    "INT8",
    "CalmModel",
    "CalmScorer",
    "EagerModel",
    "EagerScorer",
    "ExitRule",
    "Int8Linear",
    "StaticModel",
    "check_shared_vocabulary",
    "is_prepared",
    "load_network",
    "load_tokenizer",
    "resolve_device",
    "resolve_dtype",
    "to_int8",
]
