"""Beam search of the large model, with layers that the small one drafts: a loop of its own, for what lives is a set."""

from bild.decoding.beams.search import BeamBatch

__all__ = ["BeamBatch"]
