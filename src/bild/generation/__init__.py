"""Text or tensors in, text out."""

from bild.generation.conversation import Conversation
from bild.generation.decoder import BigLittleDecoder
from bild.generation.options import GenerationOptions
from bild.generation.pair import Pair, bundled_pair
from bild.generation.result import Result
from bild.generation.stream import Stream

__all__ = ["BigLittleDecoder", "Conversation", "GenerationOptions", "Pair", "Result", "Stream", "bundled_pair"]
