"""The uncompiled runtime: transformers' modules as they are, on caches of our own."""

from bild.models.eager.model import EagerModel
from bild.models.eager.scorer import EagerScorer

__all__ = ["EagerModel", "EagerScorer"]
