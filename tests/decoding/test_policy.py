"""Policies: ranges, presets, what is lossless, and the way to JSON and back."""

from __future__ import annotations

import json
import math

import pytest

from bild.decoding import (
    PRESETS,
    AdaptiveConfidence,
    ExactMatch,
    FixedWindow,
    LowConfidence,
    Policy,
    RejectionSampling,
    TypicalAcceptance,
    WithinDistance,
    preset_options,
)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Policy.bild(fallback_threshold=-0.1), "fallback_threshold is -0.1; allowed is 0 to 1"),
        (lambda: Policy.bild(fallback_threshold=45), "fallback_threshold is 45; allowed is 0 to 1"),
        (lambda: Policy.bild(fallback_threshold=math.nan), "fallback_threshold is nan"),
        (lambda: Policy.bild(rollback_threshold=-1), "rollback_threshold is -1; allowed is 0 or more"),
        (lambda: Policy.bild(rollback_threshold=math.nan), "rollback_threshold is nan"),
        (lambda: Policy.bild(max_draft_tokens=0), "max_draft_tokens is 0; allowed is 1 or more"),
        (lambda: FixedWindow(0), "window is 0; allowed is 1 or more"),
        (lambda: Policy.bild(metric="cosine"), "metric is 'cosine'; allowed are nll"),
        (lambda: Policy.bild(keeps_doubtful="no"), "keeps_doubtful is 'no'; allowed are True and False"),
        (lambda: OWN.parse("exact:keeps_doubtful=1"), "keeps_doubtful is '1'; allowed is yes or no"),
        (lambda: Policy.bild(measure="whim"), "measure is 'whim'; allowed are max_probability"),
        (lambda: Policy(hand_over=FixedWindow(20)), "window is 20, above max_draft_tokens, which is 10"),
        (lambda: Policy(acceptance=RejectionSampling()), "verify_end=True"),
        (lambda: Policy(acceptance=ExactMatch()), "verify_end=True"),
        (lambda: Policy.bild(verify_end=1.5), "verify_end is 1.5; allowed are True, False, or a probability"),
        (lambda: Policy(hand_over=FixedWindow(2), verify_end=0.5), "needs a hand-over rule that measures confidence"),
        (lambda: Policy(acceptance=ExactMatch(), verify_end=0.9), "verify_end=True"),
        (lambda: Policy(alone="medium"), "alone is 'medium'"),
        (lambda: Policy.adasd(version=3), "version is 3; allowed are 1 and 2"),
        (lambda: Policy.adasd(decay=0), "decay is 0; allowed is above 0, up to 1"),
        (lambda: Policy.pyramid(qualifier_threshold=-1), "qualifier_threshold is -1; allowed is 0 or more"),
        (lambda: Policy.pyramid(target_threshold=math.nan), "target_threshold is nan; allowed is 0 or more"),
        (lambda: Policy.pyramid(qualifier="fuzzy"), "qualifier is 'fuzzy'; allowed are within_distance, exact_match"),
        (lambda: Policy.pyramid(qualifier="exact_match", qualifier_threshold=1), "says nothing to qualifier"),
        (lambda: Policy.pyramid(metric="cosine"), "metric is 'cosine'"),
        (lambda: Policy.reward(delta=math.nan), "delta is nan; allowed is any number"),
        (lambda: Policy.reward(delimiter=""), "delimiter is ''; allowed is a text of at least one character"),
        (lambda: OWN.parse("reward:delta=high"), "delta is 'high'; allowed is a number"),
        (lambda: Policy.from_dict({"segment": {"delta": "x"}}), "delta is 'x'"),
        (lambda: Policy.from_dict({"segment": {"gamma": 1}}), "not a policy"),
        (lambda: Policy.from_dict({"qualifier": {"rule": "whim"}}), "rule is 'whim'"),
        (lambda: OWN.parse("adasd:version=x"), "version is 'x'; allowed is a whole number"),
        (lambda: Policy.preset("bild2"), "policy is 'bild2'; allowed are bild, exact, speculative_sampling"),
        (lambda: Policy.preset("large", window=5), "policy 'large' has no option window; it takes none"),
        (lambda: Policy.preset("exact", window=5), "has no option window; allowed are fallback_threshold, max_draft"),
        (lambda: OWN.parse("bild:window=5"), "policy 'bild' has no option window"),
        (lambda: OWN.parse("bild:fallback_threshold"), "is not key=value"),
        (lambda: OWN.parse("no_fallback:window=2.5"), "window is '2.5'; allowed is a whole number"),
        (lambda: OWN.parse("bild:verify_end=maybe"), "verify_end is 'maybe'; allowed is a number, yes or no"),
        (lambda: Policy.from_dict({"windows": 3}), "not a policy"),
        (lambda: Policy.from_dict({"hand_over": {"rule": "whim"}}), "rule is 'whim'"),
    ],
)
def test_meaningless_values_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    "policy",
    [
        Policy.bild(fallback_threshold=0.37, rollback_threshold=1.25, max_draft_tokens=7, verify_end=True),
        Policy.bild(verify_end=0.65),
        Policy.exact(fallback_threshold=0.2, max_draft_tokens=3),
        Policy.exact(keeps_doubtful=True),
        Policy.large(),
        Policy.small(),
        Policy(hand_over=FixedWindow(4), acceptance=WithinDistance(math.inf)),
        Policy(hand_over=FixedWindow(), acceptance=TypicalAcceptance(0.2, 0.4), max_draft_tokens=4),
        Policy(hand_over=AdaptiveConfidence(0.3, "margin", prior=2.5)),
        Policy.adaptive(),
        Policy.adasd(version=1, decay=0.9),
        Policy.pyramid(),
        Policy.pyramid(qualifier="exact_match", target_threshold=0.3, metric="kl"),
        Policy.reward(delta=0.4, delimiter="\n", max_draft_tokens=40),
        Policy.ensemble(weight=0.6, window=3),
        Policy.bild(metric="kl", measure="entropy"),
    ],
)
def test_survives_json(policy):
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_knows_whether_it_is_lossless():
    lossless = [
        Policy.exact(),
        Policy.large(),
        Policy(hand_over=FixedWindow(3), acceptance=ExactMatch(), verify_end=True),
        Policy(acceptance=RejectionSampling(), verify_end=True),
        Policy.speculative_sampling(),
        Policy.ensemble(weight=1),
    ]
    lossy = [Policy.bild(), Policy.bild(rollback_threshold=0, verify_end=True), Policy.small()]
    lossy += [Policy.ensemble(), Policy.typical(), Policy.adaptive(), Policy.no_rollback(), Policy.no_fallback()]
    lossy += [Policy.reward(), Policy.adasd(), Policy.pyramid(), Policy.pyramid(qualifier="rejection_sampling")]
    lossy += [Policy.key_tokens(), Policy.key_tokens(surprise_gap=0)]
    assert [p.lossless for p in lossless + lossy] == [True] * len(lossless) + [False] * len(lossy)


OWN = Policy.bild(fallback_threshold=0.4, rollback_threshold=1.5, max_draft_tokens=7, verify_end=0.6)


def test_bild_means_this_policy_with_options_in_place_of_its_own():
    assert OWN.parse("bild") is OWN
    assert OWN.parse("bild:rollback_threshold=3:verify_end=no") == Policy.bild(
        fallback_threshold=0.4, rollback_threshold=3, max_draft_tokens=7
    )
    assert OWN.parse("exact") == Policy.exact()
    kept = OWN.parse("bild:keeps_doubtful=yes")
    assert kept.hand_over == LowConfidence(0.4, keeps_doubtful=True) and kept.verify_end == 0.6
    assert kept.parse("bild:verify_end=no").hand_over == kept.hand_over
    assert OWN.parse("no_fallback:window=4:metric=rank") == Policy.no_fallback(window=4, metric="rank")


def test_a_line_break_has_a_name():
    assert OWN.parse("reward:delimiter=\\n") == Policy.reward(delimiter="\n")


def test_a_threshold_is_not_carried_over_to_another_metric():
    other = OWN.parse("bild:metric=js:measure=entropy")
    assert other.acceptance == WithinDistance(0.5, "js") and other.hand_over == LowConfidence(0.3, "entropy")
    assert (other.max_draft_tokens, other.verify_end) == (7, 0.6)
    assert other.parse("bild:max_draft_tokens=3").acceptance == WithinDistance(0.5, "js")
    assert OWN.parse("bild:metric=nll").acceptance == WithinDistance(1.5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_option_of_a_preset_reaches_its_policy(name):
    values = {"measure": "margin", "metric": "tv", "max_draft_tokens": 3, "window": 4, "verify_end": True}
    values |= {"fallback_threshold": 0.11, "rollback_threshold": 0.12, "weight": 0.13, "epsilon": 0.14, "delta": 0.15}
    values |= {"prior": 0.16, "version": 1, "decay": 0.75, "qualifier": "exact_match"}
    values |= {"keeps_doubtful": True}
    values |= {"qualifier_threshold": 0.17, "target_threshold": 0.18, "delimiter": "."}
    values |= {"surprise_gap": 0.19, "top_gap": 0.21, "variation": 0.22}
    # Of both distributions: a metric that key tokens do not take.
    values |= {"metric": "margin"} if name == "key_tokens" else {}
    default = Policy.preset(name)
    for option in preset_options(name):
        value = (not default.verify_end) if option == "verify_end" else values[option]
        changed = Policy.preset(name, **{option: value})
        assert changed != default and json.dumps(value) in json.dumps(changed.to_dict())
        text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        assert default.parse(f"{name}:{option}={text}") == (
            changed if name != "bild" else default.named(name, **{option: value})
        )
