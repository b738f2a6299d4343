"""Make a small model of a large one: some of its layers, a short list of its tokens, and what it writes to learn from.

draft("model.gguf", "drafter", Recipe.preset("fast", epochs=2, distill=1.0), Shape(layers="4", head_vocabulary=8192))
"""

from bild.training.drafting.making import draft
from bild.training.drafting.shape import Shape

__all__ = ["Shape", "draft"]
