"""A policy: when the small model hands over, and what the large model lets pass."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bild.decoding.acceptance import Acceptance, ExactMatch, RejectionSampling, TypicalAcceptance, WithinDistance
from bild.decoding.adaptive import AdaptiveConfidence, AdaptiveDistance
from bild.decoding.adasd import DistanceOfAccepted, EntropyOfRejected
from bild.decoding.distances import METRICS
from bild.decoding.draft import Draft, Writer
from bild.decoding.hand_over import MEASURES, FixedWindow, HandOver, LowConfidence
from bild.decoding.key_tokens import KeyTokens
from bild.decoding.presets import DEFAULT_MAX_DRAFT_TOKENS, Presets, parse_option, split_options
from bild.decoding.related_presets import SegmentRule

HAND_OVER_RULES: dict[str, type[Any]] = {
    "low_confidence": LowConfidence,
    "adaptive_confidence": AdaptiveConfidence,
    "fixed_window": FixedWindow,
    "entropy_of_rejected": EntropyOfRejected,
}
ACCEPTANCE_RULES: dict[str, type[Any]] = {
    "within_distance": WithinDistance,
    "adaptive_distance": AdaptiveDistance,
    "distance_of_accepted": DistanceOfAccepted,
    "typical": TypicalAcceptance,
    "key_tokens": KeyTokens,
    "exact_match": ExactMatch,
    "rejection_sampling": RejectionSampling,
}


@dataclass(frozen=True, kw_only=True)
class Policy(Presets):
    """A hand-over rule, an acceptance rule and a few flags.

    Args:
        hand_over: when the small model gives up the turn.
        acceptance: which prefix of its draft survives.
        max_draft_tokens: longest draft, 1…∞, default 10 as in the paper.
        verify_end: whether a model's draft that ends in an end token is read by the large model before it
            counts. False, as in Algorithm 1: never. True: always; a lossless policy must. A
            probability, 0…1: if the small model's confidence in any token of that draft is below.
            A draft that a stop string or the length limit ends is always read.
        alone: one model decodes without the other; the rules are then not used.
        qualifier: which prefix of a draft survives a model in between, before the large one reads it; None: by the same
            rule. Without a middle model it has nothing to judge.
        segment: drafts are whole segments, and a reward says whether they stay unread or the large model writes them
            anew (:mod:`bild.decoding.segments`); it comes with the pair or the call. None: no rule of that kind.

    Raises:
        ValueError: a value out of range, or rules and flags that do not go together.
    """

    hand_over: HandOver = field(default_factory=lambda: LowConfidence(MEASURES["max_probability"].default))
    acceptance: Acceptance = field(default_factory=lambda: WithinDistance(METRICS["nll"].default))
    max_draft_tokens: int = DEFAULT_MAX_DRAFT_TOKENS
    verify_end: bool | float = False
    alone: Writer | None = None
    qualifier: Acceptance | None = None
    segment: SegmentRule | None = None

    def __post_init__(self) -> None:
        if self.max_draft_tokens < 1:
            raise ValueError(f"max_draft_tokens is {self.max_draft_tokens}; allowed is 1 or more")
        if type(self.verify_end) is int and self.verify_end in (0, 1):
            # JSON and the shell know 1 and 0 for True and False; a probability is written 1.0.
            object.__setattr__(self, "verify_end", bool(self.verify_end))
        if not 0 <= self.verify_end <= 1:
            raise ValueError(f"verify_end is {self.verify_end}; allowed are True, False, or a probability from 0 to 1")
        if not isinstance(self.verify_end, bool) and isinstance(self.hand_over, FixedWindow):
            raise ValueError("verify_end as a probability needs a hand-over rule that measures confidence")
        if self.acceptance.lossless and self.verify_end is not True:
            raise ValueError("a lossless acceptance rule is so only if the end is verified too: set verify_end=True")
        window = self.hand_over.window
        if window is not None and window > self.max_draft_tokens:
            raise ValueError(
                f"window is {window}, above max_draft_tokens, which is {self.max_draft_tokens}; make them agree"
            )
        if self.alone not in (None, "small", "large"):
            raise ValueError(f"alone is {self.alone!r}; allowed are 'small', 'large' and None")

    @property
    def lossless(self) -> bool:
        """Whether the text has the distribution of the large model's own (greedy: is the same text)."""
        if self.alone is not None:
            return self.alone == "large"
        return self.acceptance.lossless and self.verify_end is True and self.segment is None

    def reads(self, draft: Draft) -> bool:
        """Whether the large model reads this draft; if not, it is final as it is."""
        if self.alone == "small":
            return False
        # A drafter that looked its tokens up cannot say how sure it is that the text ends.
        if draft.reason != "end" or draft.certain:
            return True
        if isinstance(self.verify_end, bool):
            return self.verify_end
        # Nobody measured how sure the drafter was: better to read what it wrote.
        return min(draft.confidences, default=-1.0) < self.verify_end

    def named(self, name: str, **options: Any) -> Policy:
        """The preset of this name; ``"bild"`` is this policy, with the options given in place of its own.

        Args:
            name: ``"bild"``, or another of :data:`~bild.decoding.PRESETS`.
            options: arguments of the preset.

        Raises:
            ValueError: an unknown name, an option that the preset does not have, or a value out of range.
        """
        if name != "bild":
            return Policy.preset(name, **options)
        return Policy.preset("bild", **self._own_options(options) | options) if options else self

    def parse(self, text: str) -> Policy:
        """As :meth:`named`, from ``NAME[:option=value]*``: ``"typical"``, ``"bild:metric=js:rollback_threshold=0.4"``.

        Raises:
            ValueError: as :meth:`named`, or text of another form.
        """
        name, options = split_options(text)
        return self.named(name, **{key: parse_option(key, value) for key, value in options.items()})

    def _own_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the ``bild`` preset that this policy answers to; a threshold goes with its measure or metric."""
        own: dict[str, Any] = {"max_draft_tokens": self.max_draft_tokens, "verify_end": self.verify_end}
        if isinstance(self.hand_over, LowConfidence):
            own["keeps_doubtful"] = self.hand_over.keeps_doubtful
        for rule, kind, unit, threshold in (
            (self.hand_over, LowConfidence, "measure", "fallback_threshold"),
            (self.acceptance, WithinDistance, "metric", "rollback_threshold"),
        ):
            if isinstance(rule, kind) and given.get(unit, getattr(rule, unit)) == getattr(rule, unit):
                own |= {unit: getattr(rule, unit), threshold: rule.threshold}
        return own

    def to_dict(self) -> dict[str, Any]:
        """This policy as plain JSON values; :meth:`from_dict` reads it back."""
        if self.alone is not None:
            return {"alone": self.alone}
        values = {
            "hand_over": _rule_to_dict(self.hand_over, HAND_OVER_RULES),
            "acceptance": _rule_to_dict(self.acceptance, ACCEPTANCE_RULES),
            "max_draft_tokens": self.max_draft_tokens,
            "verify_end": self.verify_end,
        }
        if self.qualifier is not None:
            values["qualifier"] = _rule_to_dict(self.qualifier, ACCEPTANCE_RULES)
        if self.segment is not None:
            values["segment"] = asdict(self.segment)
        return values

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
            for name in ("acceptance", "qualifier"):
                if name in fields:
                    fields[name] = _rule_from_dict(fields[name], ACCEPTANCE_RULES)
            if "segment" in fields:
                fields["segment"] = SegmentRule(**fields["segment"])
            return cls(**fields)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a policy: {values!r} ({error})") from None


def _rule_to_dict(rule: Any, rules: dict[str, type[Any]]) -> dict[str, Any]:
    name = next((name for name, kind in rules.items() if type(rule) is kind), None)
    if name is None:
        raise ValueError(
            f"a rule of your own ({type(rule).__name__}) cannot be written down; allowed are {', '.join(rules)}"
        )
    return {"rule": name, **asdict(rule)}


def _rule_from_dict(values: dict[str, Any], rules: dict[str, type[Any]]) -> Any:
    arguments = dict(values)
    name = arguments.pop("rule")
    if name not in rules:
        raise ValueError(f"rule is {name!r}; allowed are {', '.join(rules)}")
    return rules[name](**arguments)
