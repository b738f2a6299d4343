"""The compiled runtime: the same modules in graphs that are compiled once and kept on disk."""

from bild.models.compiled.model import CompiledModel, compiling_aside, is_prepared
from bild.models.compiled.scorer import CompiledScorer

__all__ = ["CompiledModel", "CompiledScorer", "compiling_aside", "is_prepared"]
