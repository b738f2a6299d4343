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
from bild.decoding.adasd import DistanceOfAccepted, EntropyOfRejected
from bild.decoding.beams import BeamBatch
from bild.decoding.choice import Choice, Greedy, Sampling
from bild.decoding.commits import Commit, Hypothesis
from bild.decoding.draft import Draft, HandOverReason, Work, Writer
from bild.decoding.drafters import (
    Backoff,
    Bandit,
    Cascade,
    Certain,
    Drafter,
    First,
    Kit,
    Maker,
    ModelDrafter,
    NGram,
    Ngrams,
    Recipe,
    Replay,
    parse_drafter,
)
from bild.decoding.goodput import Goodput
from bild.decoding.hand_over import FixedWindow, HandOver, LowConfidence
from bild.decoding.history import History, Use
from bild.decoding.likelihood import Scored
from bild.decoding.pace import Fixed, Pace, Table, parse_pace
from bild.decoding.policy import Policy
from bild.decoding.presets import PRESETS, parse_option, preset_options, split_options
from bild.decoding.related_presets import SegmentRule
from bild.decoding.rounds import Batch, Loop, decode
from bild.decoding.rows import Beams, FinishReason, Request, Reward, Row, Rules, Segments, searches
from bild.decoding.scorer import Scorer
from bild.decoding.scores import Scores, Summary
from bild.decoding.stats import Stats
from bild.decoding.verdict import Learner, Verdict
from bild.decoding.verifier import LocalVerifier, Verifier

__all__ = [
    "PRESETS",
    "Acceptance",
    "AdaptiveConfidence",
    "AdaptiveDistance",
    "Backoff",
    "Bandit",
    "Batch",
    "BeamBatch",
    "Beams",
    "Cascade",
    "Certain",
    "Choice",
    "Commit",
    "DistanceOfAccepted",
    "Draft",
    "Drafter",
    "EntropyOfRejected",
    "ExactMatch",
    "FinishReason",
    "First",
    "Fixed",
    "FixedWindow",
    "Goodput",
    "Greedy",
    "HandOver",
    "HandOverReason",
    "History",
    "Hypothesis",
    "Judgement",
    "Kit",
    "Learner",
    "LocalVerifier",
    "Loop",
    "LowConfidence",
    "Maker",
    "ModelDrafter",
    "NGram",
    "Ngrams",
    "Pace",
    "Policy",
    "Reading",
    "Recipe",
    "RejectionSampling",
    "Replay",
    "Request",
    "Reward",
    "Row",
    "Rules",
    "Sampling",
    "Scored",
    "Scorer",
    "Scores",
    "SegmentRule",
    "Segments",
    "Stats",
    "Summary",
    "Table",
    "TypicalAcceptance",
    "Use",
    "Verdict",
    "Verifier",
    "WithinDistance",
    "Work",
    "Writer",
    "decode",
    "parse_drafter",
    "parse_option",
    "parse_pace",
    "preset_options",
    "searches",
    "split_options",
]
