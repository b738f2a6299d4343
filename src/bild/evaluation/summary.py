"""What a run comes to: figures of each method on each set, with what they are divided by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bild.evaluation.bootstrap import Estimate
from bild.evaluation.memory import PeakMemory

DEFINITIONS = {
    "interval": "95 % percentile interval of a paired bootstrap over texts: the same resamples for every method",
    "quality": "score from 0 to 100, over the texts that have references; see signatures",
    "difference": "quality less that of the baseline",
    "speedup": "seconds of the baseline / seconds of the method, each summed over texts",
    "latency_median_ms": "median over texts of the time from text in to text out",
    "latency_p95_ms": "95th percentile over texts of the same",
    "ms_per_token": "summed time / summed new tokens, end tokens included",
    "ttft_median_ms": "median over texts of the time to the first token that will not change",
    "mean_acceptance_length": "1 + accepted draft tokens / rounds",
    "acceptance_rate": "accepted draft tokens / draft tokens",
    "rollback_rate": "rounds that ended in a rollback / rounds",
    "large_share": "tokens written by the large model / all new tokens",
    "mean_layers": "decoder layers run / tokens read by the decoder, of a method that leaves layers out",
    "same_tokens": "texts whose tokens are all those of the baseline / texts",
    "same_prefix": "tokens before the first difference from the baseline / tokens of the baseline",
    "weight_bytes": "bytes of the weights a method holds",
    "peak_memory": "largest resident memory of a fresh process that loads the method and decodes 8 texts; "
    "above_imports is less what importing torch and transformers takes; own methods load both models",
}


@dataclass(frozen=True)
class MethodFigures:
    """One method on one set; None where there is nothing to compute a figure from. See ``DEFINITIONS``."""

    quality: dict[str, Estimate]
    difference: dict[str, Estimate]
    speedup: Estimate
    latency_median_ms: float
    latency_p95_ms: float
    ms_per_token: float | None
    ttft_median_ms: float | None
    num_tokens: int
    total_s: float
    mean_acceptance_length: float | None
    acceptance_rate: float | None
    rollback_rate: float | None
    large_share: float | None
    mean_layers: float | None
    same_tokens: float
    same_prefix: float | None
    counts: dict[str, Any] | None = None
    """Added-up counts of a method: the numerators and denominators of its rates."""


@dataclass(frozen=True)
class SetFigures:
    """All methods on one set of examples."""

    num_examples: int
    """Examples that every method decoded: all figures are over these."""
    num_left_out: int
    """Examples on which some method failed."""
    num_with_references: int
    methods: dict[str, MethodFigures]
    signatures: dict[str, str] = field(default_factory=dict)
    """Of each quality metric."""


@dataclass(frozen=True)
class Failure:
    """A text that a method could not decode, and why."""

    set: str
    id: str
    method: str
    error: str


@dataclass
class Summary:
    """Everything a run says."""

    baseline: str
    task: str
    sets: dict[str, SetFigures]
    """By name; with more than one there is also ``"all"``."""
    failed: dict[str, str] = field(default_factory=dict)
    """Methods without figures, and why."""
    failures: list[Failure] = field(default_factory=list)
    weight_bytes: dict[str, int | None] = field(default_factory=dict)
    peak_memory: dict[str, PeakMemory] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each method says of itself: policy, dtype, versions."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know: skipped lines, memory that could not be measured."""
    bootstrap: dict[str, int] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Names of the methods with figures, in the user's order."""
        return list(next(iter(self.sets.values())).methods)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, with the definition of every figure."""
        return {**asdict(self), "definitions": DEFINITIONS}
