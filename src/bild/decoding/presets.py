"""Policies by name, and the few numbers each is known by."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, Self

from bild.decoding.acceptance import ExactMatch, RejectionSampling, TypicalAcceptance, WithinDistance
from bild.decoding.adaptive import DEFAULT_PRIOR, AdaptiveConfidence, AdaptiveDistance
from bild.decoding.distances import METRICS, MetricName
from bild.decoding.hand_over import MEASURES, FixedWindow, LowConfidence, MeasureName
from bild.decoding.related_presets import RelatedPresets

DEFAULT_MAX_DRAFT_TOKENS = 10
DEFAULT_WINDOW = 5


class Presets(RelatedPresets):
    """The constructors of :class:`~bild.decoding.Policy`.

    Thresholds not given are the default of their measure or metric.
    """

    @classmethod
    def bild(
        cls,
        *,
        fallback_threshold: float | None = None,
        rollback_threshold: float | None = None,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
        verify_end: bool | float = False,
        measure: MeasureName = "max_probability",
        metric: MetricName = "nll",
        keeps_doubtful: bool = False,
    ) -> Self:
        """Big Little Decoder (Algorithm 1). Not lossless.

        Args:
            fallback_threshold: α_FB, 0…1, default 0.5; the small model hands over when its confidence is
                below; higher = slower, nearer to large.
            rollback_threshold: α_RB, 0…∞, default 2 nats; the large model rolls back a token further away
                than this; lower = slower, nearer to large.
            max_draft_tokens: longest draft, 1…∞, default 10.
            verify_end: False (default, as in the paper), True, or a probability: see the class;
                higher = slower, nearer to large.
            measure: of confidence, see :class:`~bild.decoding.LowConfidence`.
            metric: of distance, see :class:`~bild.decoding.WithinDistance`.
            keeps_doubtful: whether the token in doubt stays in the draft, so that the large model judges it, default
                False: the large model writes it.
        """
        return cls._of(
            hand_over=_low_confidence(fallback_threshold, measure, keeps_doubtful),
            acceptance=_within_distance(rollback_threshold, metric),
            max_draft_tokens=max_draft_tokens,
            verify_end=verify_end,
        )

    @classmethod
    def exact(
        cls,
        *,
        fallback_threshold: float | None = None,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
        measure: MeasureName = "max_probability",
        keeps_doubtful: bool = False,
    ) -> Self:
        """The large model's own text, faster: a draft token stays only if large would write it. Lossless.

        Args:
            fallback_threshold: as in :meth:`bild`; here it changes the speed only.
            max_draft_tokens: longest draft, 1…∞, default 10.
            measure: of confidence, see :class:`~bild.decoding.LowConfidence`.
            keeps_doubtful: as in :meth:`bild`; here it saves large passes and changes no text.
        """
        return cls._of(
            hand_over=_low_confidence(fallback_threshold, measure, keeps_doubtful),
            acceptance=ExactMatch(),
            max_draft_tokens=max_draft_tokens,
            verify_end=True,
        )

    @classmethod
    def speculative_sampling(cls, *, window: int = DEFAULT_WINDOW) -> Self:
        """Speculative decoding with rejection sampling (Leviathan et al., Chen et al. 2023). Lossless.

        Args:
            window: tokens of every draft, 1…∞, default 5.
        """
        return cls.ensemble(weight=1.0, window=window)

    @classmethod
    def ensemble(cls, *, weight: float = 0.8, window: int = DEFAULT_WINDOW) -> Self:
        """Speculative decoding towards a blend of both models' distributions. Lossless at weight 1 only.

        Args:
            weight: of the large model, 0…1, default 0.8 (transformers: ``assistant_ensemble_weight``);
                higher = slower, nearer to large.
            window: tokens of every draft, 1…∞, default 5.
        """
        return cls._of(
            hand_over=FixedWindow(window),
            max_draft_tokens=window,
            acceptance=RejectionSampling(weight),
            verify_end=True,
        )

    @classmethod
    def typical(
        cls,
        *,
        epsilon: float = 0.09,
        delta: float = 0.3,
        fallback_threshold: float | None = None,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
        verify_end: bool | float = True,
        measure: MeasureName = "max_probability",
    ) -> Self:
        """Draft as BiLD, keep what is typical of the large model (Medusa). Not lossless.

        Args:
            epsilon: see :class:`~bild.decoding.TypicalAcceptance`; higher = slower, nearer to large.
            delta: likewise.
            fallback_threshold: as in :meth:`bild`.
            max_draft_tokens: longest draft, 1…∞, default 10.
            verify_end: as in :meth:`bild`, default True.
            measure: of confidence, see :class:`~bild.decoding.LowConfidence`.
        """
        return cls._of(
            hand_over=_low_confidence(fallback_threshold, measure),
            acceptance=TypicalAcceptance(epsilon, delta),
            max_draft_tokens=max_draft_tokens,
            verify_end=verify_end,
        )

    @classmethod
    def no_rollback(
        cls,
        *,
        fallback_threshold: float | None = None,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
        measure: MeasureName = "max_probability",
    ) -> Self:
        """BiLD without its rollback policy (section 4.3): whatever the small model is sure of stays. Not lossless.

        Args:
            fallback_threshold: as in :meth:`bild`.
            max_draft_tokens: longest draft, 1…∞, default 10.
            measure: of confidence, see :class:`~bild.decoding.LowConfidence`.
        """
        return cls._of(
            hand_over=_low_confidence(fallback_threshold, measure),
            acceptance=WithinDistance(float("inf")),
            max_draft_tokens=max_draft_tokens,
        )

    @classmethod
    def no_fallback(
        cls,
        *,
        rollback_threshold: float | None = None,
        window: int = DEFAULT_WINDOW,
        verify_end: bool = False,
        metric: MetricName = "nll",
    ) -> Self:
        """BiLD without its fallback policy (section 4.3): hand over after a fixed number of tokens. Not lossless.

        Args:
            rollback_threshold: as in :meth:`bild`.
            window: tokens of every draft, 1…∞, default 5; the paper sweeps 3 to 10.
            verify_end: whether the large model reads a draft that ends in an end token, default False.
            metric: of distance, see :class:`~bild.decoding.WithinDistance`.
        """
        return cls._of(
            hand_over=FixedWindow(window),
            acceptance=_within_distance(rollback_threshold, metric),
            max_draft_tokens=window,
            verify_end=verify_end,
        )

    @classmethod
    def adaptive(
        cls,
        *,
        fallback_threshold: float | None = None,
        rollback_threshold: float | None = None,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
        verify_end: bool | float = False,
        measure: MeasureName = "entropy",
        metric: MetricName = "js",
        prior: float = DEFAULT_PRIOR,
    ) -> Self:
        """Both thresholds adapt to each text while it is written (:mod:`bild.decoding.adaptive`). Not lossless.

        Args:
            fallback_threshold: to start from, 0…1, default 0.3 for the entropy.
            rollback_threshold: to start from, default 0.5 for the Jensen–Shannon distance.
            max_draft_tokens: longest draft, 1…∞, default 10.
            verify_end: as in :meth:`bild`.
            measure: of confidence, see :class:`~bild.decoding.LowConfidence`.
            metric: of distance, see :class:`~bild.decoding.WithinDistance`.
            prior: tokens that the start counts for, above 0, default 4; higher adapts more slowly.
        """
        fallback, rollback = _low_confidence(fallback_threshold, measure), _within_distance(rollback_threshold, metric)
        return cls._of(
            hand_over=AdaptiveConfidence(fallback.threshold, measure, prior=prior),
            acceptance=AdaptiveDistance(rollback.threshold, metric, prior=prior),
            max_draft_tokens=max_draft_tokens,
            verify_end=verify_end,
        )

    @classmethod
    def large(cls) -> Self:
        """Plain decoding by the large model alone."""
        return cls._of(alone="large")

    @classmethod
    def small(cls) -> Self:
        """Plain decoding by the small model alone."""
        return cls._of(alone="small")

    @classmethod
    def preset(cls, name: str, **options: Any) -> Self:
        """The preset of this name.

        Args:
            name: one of :data:`PRESETS`.
            options: its arguments.

        Raises:
            ValueError: an unknown name, an option that the preset does not have, or a value out of range.
        """
        allowed = preset_options(name)
        for option in options:
            if option not in allowed:
                takes = f"allowed are {', '.join(allowed)}" if allowed else "it takes none"
                raise ValueError(f"policy {name!r} has no option {option}; {takes}")
        make: Callable[..., Self] = getattr(cls, name)
        return make(**options)


PRESETS = (
    "bild", "exact", "speculative_sampling", "ensemble", "typical", "no_rollback", "no_fallback", "adaptive",
    "adasd", "pyramid", "reward", "key_tokens", "large", "small",
)  # fmt: skip
"""Names of the presets."""


@cache
def preset_options(name: str) -> tuple[str, ...]:
    """The names of a preset's arguments.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"policy is {name!r}; allowed are {', '.join(PRESETS)}")
    return tuple(inspect.signature(getattr(Presets, name)).parameters)


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Read ``NAME[:key=value]*``.

    Raises:
        ValueError: an empty name, an option without a value, or one given twice.
    """
    name, *parts = text.strip().split(":")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ValueError(f"{text!r}: {part!r} is not key=value; write NAME:key=value:key=value")
        if key in options:
            raise ValueError(f"{text!r}: {key} is given twice; give it once")
        options[key] = value
    if not name:
        raise ValueError(f"{text!r} has no name; write NAME:key=value:key=value")
    return name, options


def parse_option(name: str, text: str) -> Any:
    """The value of a preset's argument from its text: ``"0.4"``, ``"yes"``, ``"nll"``.

    Raises:
        ValueError: not a value this argument can have.
    """
    if name in ("measure", "metric", "qualifier"):
        return text
    if name == "delimiter":
        return text.replace("\\n", "\n").replace("\\t", "\t")
    if name in ("verify_end", "keeps_doubtful") and text in YES_OR_NO:
        return YES_OR_NO[text]
    if name == "keeps_doubtful":
        raise ValueError(f"{name} is {text!r}; allowed is yes or no")
    whole = name in ("max_draft_tokens", "window", "version")
    try:
        return int(text) if whole else float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number" + (", yes or no" if name == "verify_end" else "")
        raise ValueError(f"{name} is {text!r}; allowed is {kind}") from None


YES_OR_NO = {"yes": True, "true": True, "no": False, "false": False}


def _low_confidence(threshold: float | None, measure: MeasureName, keeps_doubtful: bool = False) -> LowConfidence:
    default = MEASURES[measure].default if measure in MEASURES else 0.0
    return LowConfidence(default if threshold is None else threshold, measure, keeps_doubtful=keeps_doubtful)


def _within_distance(threshold: float | None, metric: MetricName) -> WithinDistance:
    default = METRICS[metric].default if metric in METRICS else 0.0
    return WithinDistance(default if threshold is None else threshold, metric)
