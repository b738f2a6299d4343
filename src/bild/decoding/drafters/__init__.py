"""Who proposes tokens: a file a drafter."""

from bild.decoding.drafters.backoff import Backoff
from bild.decoding.drafters.bandit import Bandit
from bild.decoding.drafters.cascade import Cascade
from bild.decoding.drafters.certain import Certain
from bild.decoding.drafters.drafter import Drafter
from bild.decoding.drafters.first import First
from bild.decoding.drafters.model import ModelDrafter
from bild.decoding.drafters.ngram import NGram
from bild.decoding.drafters.ngrams import Ngrams
from bild.decoding.drafters.recipe import Kit, Maker, Recipe, parse_drafter
from bild.decoding.drafters.replay import Replay

__all__ = [
    "Backoff",
    "Bandit",
    "Cascade",
    "Certain",
    "Drafter",
    "First",
    "Kit",
    "Maker",
    "ModelDrafter",
    "NGram",
    "Ngrams",
    "Recipe",
    "Replay",
    "parse_drafter",
]
