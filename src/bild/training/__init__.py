"""Make the models of a pair: train, fine-tune, align the small one to the large one, or make it of that one.

recipe = Recipe.preset("fast", epochs=3)
train(Start(checkpoint="models/small"), {"train": read_examples("train.jsonl")}, "out", recipe)
align({"train": read_examples("train.jsonl")}, "aligned", recipe, pair="models")
draft("model.gguf", "drafter", Recipe.preset("fast", epochs=3, distill=1.0), Shape(layers="4"))
"""

from bild.training.alignment import align
from bild.training.drafting import Shape, draft
from bild.training.job import train
from bild.training.ngrams import count_ngrams
from bild.training.recipe import Recipe
from bild.training.settings import Settings
from bild.training.start import Start

__all__ = ["Recipe", "Settings", "Shape", "Start", "align", "count_ngrams", "draft", "train"]
