"""A policy: when the small model hands over, and what the large model lets pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bild.decoding.acceptance import Acceptance, ExactMatch, WithinDistance
from bild.decoding.hand_over import FixedWindow, HandOver, LowConfidence
from bild.decoding.scorer import Draft

Writer = Literal["small", "large"]

DEFAULT_FALLBACK_THRESHOLD = 0.5
DEFAULT_ROLLBACK_THRESHOLD = 2.0
DEFAULT_MAX_DRAFT_TOKENS = 10

HAND_OVER_RULES: dict[str, type[Any]] = {"low_confidence": LowConfidence, "fixed_window": FixedWindow}
ACCEPTANCE_RULES: dict[str, type[Any]] = {"within_distance": WithinDistance, "exact_match": ExactMatch}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A hand-over rule, an acceptance rule and a few flags.

    Args:
        hand_over: when the small model gives up the turn.
        acceptance: which prefix of its draft survives.
        max_draft_tokens: longest draft, 1…∞, default 10 as in the paper.
        verify_end: whether a draft that ends the text is read by the large model before it
            counts. False, as in Algorithm 1: never. True: always; a lossless policy must. A
            probability, 0…1: if the small model's confidence in any token of that draft is below.
        alone: one model decodes without the other; the rules are then not used.

    Raises:
        ValueError: a value out of range, or a lossless acceptance rule without ``verify_end``.
    """

    hand_over: HandOver = field(default_factory=lambda: LowConfidence(DEFAULT_FALLBACK_THRESHOLD))
    acceptance: Acceptance = field(default_factory=lambda: WithinDistance(DEFAULT_ROLLBACK_THRESHOLD))
    max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS
    verify_end: bool | float = False
    alone: Writer | None = None

    def __post_init__(self) -> None:
        if self.max_draft_tokens < 1:
            raise ValueError(f"max_draft_tokens is {self.max_draft_tokens}; allowed is 1 or more")
        if not 0 <= self.verify_end <= 1:
            raise ValueError(f"verify_end is {self.verify_end}; allowed are True, False, or a probability from 0 to 1")
        if not isinstance(self.verify_end, bool) and isinstance(self.hand_over, FixedWindow):
            raise ValueError("verify_end as a probability needs a hand-over rule that measures confidence")
        if isinstance(self.acceptance, ExactMatch) and self.verify_end is not True:
            raise ValueError("exact match is lossless only if the end is verified too: set verify_end=True")
        if self.alone not in (None, "small", "large"):
            raise ValueError(f"alone is {self.alone!r}; allowed are 'small', 'large' and None")

    @property
    def lossless(self) -> bool:
        """Whether the text has the distribution of the large model's own (greedy: is the same text)."""
        if self.alone is not None:
            return self.alone == "large"
        return isinstance(self.acceptance, ExactMatch) and self.verify_end is True

    def verifies_end(self, draft: Draft) -> bool:
        """Whether the large model reads this draft, which ends the text."""
        if isinstance(self.verify_end, bool):
            return self.verify_end
        return min(draft.confidences) < self.verify_end

    @classmethod
    def bild(
        cls,
        *,
        fallback_threshold: float = DEFAULT_FALLBACK_THRESHOLD,
        rollback_threshold: float = DEFAULT_ROLLBACK_THRESHOLD,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
        verify_end: bool | float = False,
    ) -> Policy:
        """Big Little Decoder (Algorithm 1). Not lossless.

        Args:
            fallback_threshold: α_FB, probability, 0…1, default 0.5; the small model hands over
                when its confidence is below; higher = slower, nearer to large.
            rollback_threshold: α_RB, nats, 0…∞, default 2; the large model rolls back a token
                further away than this; lower = slower, nearer to large.
            max_draft_tokens: longest draft, 1…∞, default 10.
            verify_end: False (default, as in the paper), True, or a probability: see the class;
                higher = slower, nearer to large.
        """
        return cls(
            hand_over=LowConfidence(fallback_threshold),
            acceptance=WithinDistance(rollback_threshold),
            max_draft_tokens=max_draft_tokens,
            verify_end=verify_end,
        )

    @classmethod
    def exact(
        cls,
        *,
        fallback_threshold: float = DEFAULT_FALLBACK_THRESHOLD,
        max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS,
    ) -> Policy:
        """The large model's own text, faster: a draft token stays only if large would write it. Lossless.

        Args:
            fallback_threshold: as in :meth:`bild`; here it changes the speed only.
            max_draft_tokens: longest draft, 1…∞, default 10.
        """
        return cls(
            hand_over=LowConfidence(fallback_threshold),
            acceptance=ExactMatch(),
            max_draft_tokens=max_draft_tokens,
            verify_end=True,
        )

    @classmethod
    def large(cls) -> Policy:
        """Plain decoding by the large model alone."""
        return cls(alone="large")

    @classmethod
    def small(cls) -> Policy:
        """Plain decoding by the small model alone."""
        return cls(alone="small")

    @classmethod
    def preset(cls, name: str, **thresholds: Any) -> Policy:
        """The preset of this name: ``bild``, ``exact``, ``large`` or ``small``.

        Raises:
            ValueError: an unknown name, or a threshold that the preset does not have.
        """
        presets = {"bild": cls.bild, "exact": cls.exact, "large": cls.large, "small": cls.small}
        if name not in presets:
            raise ValueError(f"policy is {name!r}; allowed are {', '.join(presets)}")
        try:
            return presets[name](**thresholds)
        except TypeError:
            raise ValueError(f"policy {name!r} does not take all of: {', '.join(sorted(thresholds))}") from None

    def with_thresholds(self, **thresholds: Any) -> Policy:
        """The ``bild`` preset with these thresholds; those not given are this policy's, where it has them.

        Raises:
            ValueError: a threshold out of range, or one that the preset does not have.
        """
        own: dict[str, Any] = {"max_draft_tokens": self.max_draft_tokens, "verify_end": self.verify_end}
        if isinstance(self.hand_over, LowConfidence):
            own["fallback_threshold"] = self.hand_over.threshold
        if isinstance(self.acceptance, WithinDistance):
            own["rollback_threshold"] = self.acceptance.threshold
        return Policy.preset("bild", **own | thresholds)

    def to_dict(self) -> dict[str, Any]:
        """This policy as plain JSON values; :meth:`from_dict` reads it back."""
        if self.alone is not None:
            return {"alone": self.alone}
        return {
            "hand_over": _rule_to_dict(self.hand_over, HAND_OVER_RULES),
            "acceptance": _rule_to_dict(self.acceptance, ACCEPTANCE_RULES),
            "max_draft_tokens": self.max_draft_tokens,
            "verify_end": self.verify_end,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Policy:
        """The policy that :meth:`to_dict` described.

        Raises:
            ValueError: an unknown field, rule or value.
        """
        fields = dict(values)
        try:
            if "hand_over" in fields:
                fields["hand_over"] = _rule_from_dict(fields["hand_over"], HAND_OVER_RULES)
            if "acceptance" in fields:
                fields["acceptance"] = _rule_from_dict(fields["acceptance"], ACCEPTANCE_RULES)
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a policy: {values!r} ({error})") from None


def _rule_to_dict(rule: Any, rules: dict[str, type[Any]]) -> dict[str, Any]:
    name = next(name for name, kind in rules.items() if type(rule) is kind)
    return {"rule": name, **asdict(rule)}


def _rule_from_dict(values: dict[str, Any], rules: dict[str, type[Any]]) -> Any:
    arguments = dict(values)
    name = arguments.pop("rule")
    if name not in rules:
        raise ValueError(f"rule is {name!r}; allowed are {', '.join(rules)}")
    return rules[name](**arguments)
