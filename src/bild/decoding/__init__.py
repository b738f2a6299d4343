"""The algorithm: torch tensors in, committed tokens out; no transformers, no text, no clock."""

from bild.decoding.acceptance import Acceptance, ExactMatch, Judgement, WithinDistance
from bild.decoding.choice import Choice, Greedy, Sampling
from bild.decoding.drafting import ModelDrafter
from bild.decoding.hand_over import FixedWindow, HandOver, LowConfidence
from bild.decoding.policy import Policy, Writer
from bild.decoding.rounds import Commit, decode
from bild.decoding.rows import FinishReason, Request, Row
from bild.decoding.scorer import Draft, Drafter, Scorer
from bild.decoding.stats import Stats

__all__ = [
    "Acceptance",
    "Choice",
    "Commit",
    "Draft",
    "Drafter",
    "ExactMatch",
    "FinishReason",
    "FixedWindow",
    "Greedy",
    "HandOver",
    "Judgement",
    "LowConfidence",
    "ModelDrafter",
    "Policy",
    "Request",
    "Row",
    "Sampling",
    "Scorer",
    "Stats",
    "WithinDistance",
    "Writer",
    "decode",
]
