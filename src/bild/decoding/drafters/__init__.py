"""Who proposes tokens: a file a drafter."""

from bild.decoding.drafters.drafter import Drafter
from bild.decoding.drafters.model import ModelDrafter

__all__ = ["Drafter", "ModelDrafter"]
