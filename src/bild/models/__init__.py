"""What runs a network behind the Scorer contract; the only place that knows transformers' caches."""

from bild.models.eager import EagerModel, EagerScorer
from bild.models.loading import load_network, load_tokenizer, resolve_device, resolve_dtype
from bild.models.vocabulary import check_shared_vocabulary

__all__ = [
    "EagerModel",
    "EagerScorer",
    "check_shared_vocabulary",
    "load_network",
    "load_tokenizer",
    "resolve_device",
    "resolve_dtype",
]
