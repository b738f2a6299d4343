"""The algorithm: torch tensors in, committed tokens out; no transformers, no text, no clock."""

from bild.decoding.acceptance import (
    Acceptance,
    ExactMatch,
    Judgement,
    Reading,
    RejectionSampling,
    TypicalAcceptance,
    WithinDistance,
)
from bild.decoding.adaptive import AdaptiveConfidence, AdaptiveDistance
from bild.decoding.choice import Choice, Greedy, Sampling
from bild.decoding.drafting import ModelDrafter
from bild.decoding.hand_over import FixedWindow, HandOver, LowConfidence
from bild.decoding.policy import Policy, Writer
from bild.decoding.presets import PRESETS, parse_option, preset_options, split_options
from bild.decoding.rounds import Commit, decode
from bild.decoding.rows import FinishReason, Request, Row
from bild.decoding.scorer import Draft, Drafter, Scorer
from bild.decoding.stats import Stats

__all__ = [
    "PRESETS",
    "Acceptance",
    "AdaptiveConfidence",
    "AdaptiveDistance",
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
    "Reading",
    "RejectionSampling",
    "Request",
    "Row",
    "Sampling",
    "Scorer",
    "Stats",
    "TypicalAcceptance",
    "WithinDistance",
    "Writer",
    "decode",
    "parse_option",
    "preset_options",
    "split_options",
]
