"""Presets of related systems, as their papers have them; docs/related/ says what is theirs and what is ours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from bild.decoding.acceptance import Acceptance, ExactMatch, RejectionSampling, WithinDistance
from bild.decoding.adasd import DistanceOfAccepted, EntropyOfRejected
from bild.decoding.distances import METRICS, MetricName
from bild.decoding.hand_over import MEASURES, FixedWindow, LowConfidence
from bild.decoding.key_tokens import KeyTokens

ADASD_DRAFT_TOKENS = 20
PYRAMID_DRAFT_TOKENS = 10
PYRAMID_JS = {"qualifier_threshold": 0.76, "target_threshold": 0.85}
"""The paper's 0.4 and 0.5, if its divergence is that of its parent: Jensen and Shannon's in nats, without the root."""
SEGMENT_TOKENS = 128
DEFAULT_DELTA = 0.7
BLANK_LINE = "\n\n"
Qualifier = Literal["within_distance", "exact_match", "rejection_sampling"]


@dataclass(frozen=True)
class SegmentRule:
    """Where a segment ends, and how good it must be.

    Args:
        delta: least reward of a segment that stays; in the unit of the reward, any number; higher = slower, nearer to
            large. −inf keeps all whose reward is a number, inf none.
        delimiter: text that a segment ends with; default a blank line.

    Raises:
        ValueError: no number, or no delimiter.
    """

    delta: float = DEFAULT_DELTA
    delimiter: str = BLANK_LINE

    def __post_init__(self) -> None:
        if not isinstance(self.delta, int | float) or math.isnan(self.delta):
            raise ValueError(f"delta is {self.delta!r}; allowed is any number, the least reward of what stays")
        if not isinstance(self.delimiter, str) or not self.delimiter:
            raise ValueError(f"delimiter is {self.delimiter!r}; allowed is a text of at least one character")


class RelatedPresets:
    """Constructors of :class:`~bild.decoding.Policy`."""

    @classmethod
    def adasd(
        cls,
        *,
        version: int = 2,
        max_draft_tokens: int = ADASD_DRAFT_TOKENS,
        verify_end: bool | float = True,
        decay: float = 1.0,
    ) -> Self:
        """AdaSD (arXiv 2512.11280): both thresholds follow from what was rejected and accepted. Not lossless.

        Args:
            version: of the paper, 1 or 2, see :mod:`bild.decoding.adasd`.
            max_draft_tokens: longest draft, 1…∞, default 20, the paper's.
            verify_end: whether the large model reads a draft that ends in an end token, default True.
            decay: what a token counts for when one more has been seen, above 0, up to 1, the paper's: never less.
        """
        return cls._of(
            hand_over=EntropyOfRejected(decay),
            acceptance=DistanceOfAccepted(version, decay),
            max_draft_tokens=max_draft_tokens,
            verify_end=verify_end,
        )

    @classmethod
    def pyramid(
        cls,
        *,
        qualifier: Qualifier = "within_distance",
        qualifier_threshold: float | None = None,
        target_threshold: float | None = None,
        metric: MetricName = "js",
        max_draft_tokens: int = PYRAMID_DRAFT_TOKENS,
    ) -> Self:
        """PyramidSD (arXiv 2510.12966): a middle model judges drafts first, both as far as a distance. Not lossless.

        Args:
            qualifier: how the middle model judges: ``"within_distance"`` (PSD_F, fuzzy), or ``"exact_match"`` or
                ``"rejection_sampling"`` (PSD_A, assisted).
            qualifier_threshold: what the middle model lets pass, 0…∞, of a fuzzy one; lower = slower, nearer to
                middle. Default 0.76 for the Jensen–Shannon distance.
            target_threshold: what the large model lets pass of that, likewise; default 0.85. The paper advises to
                take the higher one here.
            metric: of distance, ``"js"`` by default; see :class:`~bild.decoding.WithinDistance`.
            max_draft_tokens: that the middle model collects, 1…∞, default 10; the paper has 25. How many it is
                given at once says the pair (``middle_window``); half or a third of this, says the paper.
        """
        rules: dict[str, Acceptance] = {"exact_match": ExactMatch(), "rejection_sampling": RejectionSampling()}
        if qualifier == "within_distance":
            rules[qualifier] = _near("qualifier_threshold", qualifier_threshold, metric)
        elif qualifier not in rules:
            raise ValueError(f"qualifier is {qualifier!r}; allowed are within_distance, {', '.join(rules)}")
        elif qualifier_threshold is not None:
            raise ValueError(f"qualifier_threshold says nothing to qualifier {qualifier!r}; leave one of them out")
        return cls._of(
            hand_over=FixedWindow(),
            acceptance=_near("target_threshold", target_threshold, metric),
            max_draft_tokens=max_draft_tokens,
            verify_end=True,
            qualifier=rules[qualifier],
        )

    @classmethod
    def reward(
        cls,
        *,
        delta: float = DEFAULT_DELTA,
        delimiter: str = BLANK_LINE,
        max_draft_tokens: int = SEGMENT_TOKENS,
    ) -> Self:
        """Reward-guided (arXiv 2501.19324): small writes steps, large those that a reward rejects. Not lossless.

        Who judges comes with the pair or the call (``reward=…``, ``--reward``).

        Args:
            delta: least reward of a step that stays, default 0.7, the paper's; higher = slower, nearer to large.
            delimiter: text that a step ends with, default a blank line; ``\\n`` in a name of a policy stands for one
                line break.
            max_draft_tokens: longest step, 1…∞, default 128.
        """
        return cls._of(
            hand_over=FixedWindow(),
            acceptance=ExactMatch(),
            max_draft_tokens=max_draft_tokens,
            verify_end=True,
            segment=SegmentRule(delta, delimiter),
        )

    @classmethod
    def key_tokens(
        cls,
        *,
        rollback_threshold: float | None = None,
        surprise_gap: float = 1.0,
        top_gap: float = 0.9,
        variation: float | None = None,
        fallback_threshold: float = MEASURES["max_probability"].default,
        max_draft_tokens: int = 8,
        metric: MetricName = "nll",
    ) -> Self:
        """Key tokens strict, others relaxed (arXiv 2511.11733). Not lossless.

        Args:
            rollback_threshold: of tokens that are not key, 0…∞, default 2 nats; lower = slower, nearer to large.
            surprise_gap: see :class:`~bild.decoding.key_tokens.KeyTokens`; lower = slower, nearer to large.
            top_gap: likewise.
            variation: likewise; default: not looked at.
            fallback_threshold: as in :meth:`~bild.Policy.bild`, default 0.5.
            max_draft_tokens: longest draft, 1…∞, default 8, the paper's.
            metric: of distance, ``"nll"`` (default), ``"margin"`` or ``"rank"``.
        """
        known = METRICS[metric].default if metric in METRICS else 0.0
        threshold = known if rollback_threshold is None else rollback_threshold
        return cls._of(
            hand_over=LowConfidence(fallback_threshold),
            acceptance=KeyTokens(threshold, metric, surprise_gap, top_gap, variation),
            max_draft_tokens=max_draft_tokens,
            verify_end=True,
        )

    @classmethod
    def _of(cls, **fields: Any) -> Self:
        return cls(**fields)


def _near(name: str, threshold: float | None, metric: MetricName) -> WithinDistance:
    if threshold is None:
        threshold = PYRAMID_JS[name] if metric == "js" or metric not in METRICS else METRICS[metric].default
    if not threshold >= 0:
        raise ValueError(f"{name} is {threshold}; allowed is 0 or more (inf: never roll back)")
    return WithinDistance(threshold, metric)
