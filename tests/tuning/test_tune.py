"""Tuning a tiny pair, from the grid to the pair on disk."""

from __future__ import annotations

import json
from functools import cache, partial
from random import Random
from types import SimpleNamespace

import pytest

from bild import BigLittleDecoder, Policy
from bild.errors import InputError
from bild.evaluation import Example
from bild.evaluation.measure import measure
from bild.tuning import Point, bench, default_grid, pareto, tune
from bild.tuning.grid import exact_policies, method_name, neighbours, with_exact
from bild.tuning.middle import try_middle
from bild.tuning.search import distinct, promising
from bild.tuning.tune import FINALS, RESULT, TRACES
from tests.models.test_generation_agrees import large_of, small_of
from tests.networks import word_tokenizer

GRID = [
    Policy.bild(fallback_threshold=fallback, rollback_threshold=rollback, verify_end=True)
    for fallback in (0.2, 0.5, 1.01)
    for rollback in (0.0, 2.0, 9.0)
]


@pytest.fixture(scope="module", autouse=True)
def _no_warming_up():
    """The first calls of networks as small as these are as fast as the last, and half of a tuning's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "measure", partial(measure, warm_up=1))
        yield


@cache
def decoder() -> BigLittleDecoder:
    return BigLittleDecoder(large_of("t5", 1), small_of("t5", 1, "noisy"), word_tokenizer())


@cache
def examples(count: int) -> tuple[Example, ...]:
    """Texts whose reference is what the large model writes: it loses nothing, all others do."""
    words, rng = sorted((vocab := word_tokenizer().get_vocab()), key=vocab.get), Random(0)
    sources = [" ".join(rng.choice(words[10:]) for _ in range(rng.randint(2, 6))) for _ in range(count)]
    texts = decoder().generate(sources, "large", max_new_tokens=8)
    return tuple(Example(str(i), source, (r.text,)) for i, (source, r) in enumerate(zip(sources, texts, strict=True)))


def run(out, budget: float, confidence: float | None = None, **options):
    sets = {"one": examples(8)[:4], "two": examples(8)[4:]}
    return tune(decoder(), sets, out=out, budget=budget, confidence=confidence, grid=GRID, max_new_tokens=8, **options)


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """A run that may lose all of the quality, and where it lies: ``loose.out``."""
    out = tmp_path_factory.mktemp("loose")
    found = run(out, 100.0)
    return SimpleNamespace(out=out, found=found)


def test_the_budget_decides(loose, tmp_path):
    strict, out, loose = run(tmp_path / "strict", 0.0), loose.out, loose.found
    assert strict.within_budget and max(strict.loss.values()) == 0
    assert loose.policy != strict.policy and max(loose.loss.values()) > 0
    assert set(strict.loss) == {"one", "two"}
    # Points that were looked up say what running them says.
    by_policy = {point.policy: point for point in loose.points}
    assert by_policy[loose.policy].loss == pytest.approx(loose.loss)
    assert all(a.seconds <= b.seconds for a, b in zip(loose.points, loose.points[1:], strict=False))
    evidence = loose.evidence()
    assert evidence["dev"]["one"]["texts"] == 4 and evidence["dev"]["all"]["bleu_large"][0] == pytest.approx(100)
    assert json.loads((out / RESULT).read_text())["policy"] == loose.policy.to_dict()


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_some_policy_keeps_any_budget(tmp_path, confidence):
    """Only loose policies in the grid, and all lose: a lossless one is tried with them and chosen."""
    sets = {"one": examples(8)}
    grid = [policy for policy in GRID if policy.acceptance.threshold > 2 and policy.hand_over.threshold < 1]
    found = tune(decoder(), sets, out=tmp_path, budget=0.0, grid=grid, max_new_tokens=8, confidence=confidence)
    assert found.within_budget and found.enough_texts and found.policy.lossless and found.loss == {"one": 0}
    assert "a lossless policy" in found.evidence()["tuned_for"]


def test_dev_sets_too_small_for_the_confidence_say_how_many_texts_they_lack(tmp_path):
    found = run(tmp_path / "sure", 0.3, confidence=0.9)
    assert not found.enough_texts and found.policy.lossless and set(found.verdict.too_small) == {"one", "two"}
    assert min(found.verdict.too_small.values()) > 100
    surer = run(tmp_path / "surer", 0.3, confidence=0.99)
    assert all(surer.verdict.too_small[name] > lacking for name, lacking in found.verdict.too_small.items())
    assert run(tmp_path / "not", 0.3, confidence=None).enough_texts


def test_the_evidence_says_by_which_bounds_the_policy_was_chosen(loose, tmp_path):
    found = run(tmp_path, 100.0, confidence=0.8)
    evidence, promise = found.evidence(), "with confidence 0.8 on as many other texts"
    assert evidence["confidence"] == 0.8 and (promise in evidence["tuned_for"]) != found.policy.lossless
    kept = [each for each in evidence["judged"] if each["kept"]]
    assert evidence["judged"][0]["method"].startswith("exact") and kept
    assert all(of_set["upper"] <= 100 for each in kept for of_set in each["sets"].values())
    # Half of the four texts of a set judge, and only they were run.
    assert evidence["dev"]["one"]["texts"] == 2 and evidence["dev"]["one"]["loss"]["texts"] == 2
    assert "differs_from_lookup" in evidence["dev"]["one"] and isinstance(evidence["pays"], bool)
    without = loose.found.evidence()
    assert "judged" not in without and "no confidence" in without["tuned_for"]


def test_texts_that_are_too_long_are_left_out_and_said(tmp_path):
    """A prompt of more tokens than a decoder-only pair has positions, in either half of a set."""
    pair = BigLittleDecoder(large_of("gpt2", 1), small_of("gpt2", 1, "noisy"), word_tokenizer())
    words = [word for word in sorted(word_tokenizer().get_vocab()) if word.isalnum()]
    texts = [Example(str(i), " ".join(words[i : i + 3]), (words[i],)) for i in range(12)]
    longest = pair.large.max_positions
    for at in (0, 5, 11):
        texts[at] = Example(str(at), " ".join([words[at]] * (longest + 1)), ("x",))
    lines: list[str] = []
    options = {"budget": 100, "grid": GRID[:2], "max_new_tokens": 4}
    found = tune(pair, {"a": texts}, out=tmp_path, **options, confidence=None, say=lines.append)
    assert found.summary.sets["a"].num_examples == 9
    assert any(line.startswith("a: 3 of 12 texts are left out: the text has") for line in lines)
    with pytest.raises(InputError, match="none of the texts of a can be decoded: the text has"):
        tune(pair, {"a": [texts[0]]}, out=tmp_path / "none", **options)


class Shortness:
    """A measure of the user's own: points for texts of few words."""

    name, size = "shortness", 2

    def signature(self, num_references):
        return "shortness"

    def statistics(self, text, references):
        return [100.0 - len(text.split()), 1.0]

    def score(self, sums):
        return sums[0] / sums[1] if sums[1] else None


def test_a_measure_of_quality_may_be_the_users_own(tmp_path):
    found = run(tmp_path, 100.0, metric=Shortness())
    assert found.metric == "shortness" and set(found.loss) == {"one", "two"}
    quality = {name: 100 - value for name, value in found.points[0].quality.items()}
    assert all(0 <= words <= 8 for words in quality.values())
    assert "100 shortness less" in found.evidence()["tuned_for"]


def test_lossless_policies_are_those_of_the_grid_and_come_first():
    grid = with_exact(GRID)
    assert grid[: len(exact_policies())] == exact_policies() and set(GRID) < set(grid)
    other = with_exact([Policy.bild(measure="entropy", fallback_threshold=0.3)])
    assert {policy.hand_over.measure for policy in other} == {"entropy"}


def test_what_goes_on_to_all_texts_holds_slow_and_safe_policies_too():
    """On few texts the fast ones may seem to win: had they all the places, none would be left if they lose later."""
    flattered = [point(1 + step / 50, -step / 10, changed=step / 100, name=step) for step in range(100)]
    exact = Point(Policy.exact(), {"a": 30}, {"a": 0.0}, 1 / 1.01, 1.01)
    chosen = promising([*flattered, exact], 24)
    assert exact in chosen and len(chosen) <= 25
    safest = sorted(each.changed for each in chosen)[:6]
    assert safest[2] < 0.2 and max(each.speedup for each in chosen) == pytest.approx(1 + 99 / 50)


def test_time_that_runs_out_leaves_the_best_so_far(tmp_path):
    """After no time at all the lossless policies and the grid have been seen on a few texts: that is judged."""
    lines: list[str] = []
    found = run(tmp_path, 100.0, minutes=1e-9, say=lines.append)
    assert found.within_budget and len(found.points) >= len(GRID)
    assert sum("policies on" in line for line in lines) == 1


def test_a_killed_run_goes_on(tmp_path):
    def stop(line: str) -> None:
        if "beside" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 100.0, say=stop)
    traces = (tmp_path / TRACES).read_bytes()
    assert traces and not (tmp_path / FINALS).exists()
    lines = []
    found = run(tmp_path, 100.0, say=lines.append)
    assert (tmp_path / TRACES).read_bytes() == traces and not any("texts read" in line for line in lines)
    assert found.policy == run(tmp_path, 100.0).policy
    with pytest.raises(InputError, match="other settings: metric"):
        run(tmp_path, 100.0, metric="chrf")
    assert run(tmp_path, 100.0, metric="chrf", fresh=True).metric == "chrf"


@pytest.mark.parametrize(
    ("sets", "options", "says"),
    [
        (
            {"a": [Example("1", "x"), Example("2", "x", ("y",))]},
            {},
            "a: example 1 has no reference and others have; give one for each, or prompts alone",
        ),
        ({"a": [Example("1", "x", ("y",))]}, {"budget": -0.1}, "budget is -0.1; allowed is a number of 0 or more"),
        (
            {"a": [Example("1", "x", ("y",))]},
            {"budget": float("nan")},
            "budget is nan; allowed is a number of 0",
        ),
        ({"a": [Example("1", "x", ("y",))]}, {"confidence": 1.0}, "confidence is 1.0; allowed is a number between 0.5"),
        ({"a": [Example("1", "x", ("y",))]}, {"confidence": 90}, "confidence is 90; allowed is a number between 0.5"),
        ({"a": [Example("1", "x", ("y",))]}, {"minutes": 0}, "minutes is 0; allowed is a number above 0"),
        ({"a": [Example("1", "x", ("y",))]}, {"metric": "comet"}, "metric is 'comet'; allowed are bleu, chrf"),
        ({"a": []}, {}, "no examples to tune on"),
    ],
)
def test_bad_input_is_one_line(sets, options, says, tmp_path):
    with pytest.raises(InputError, match=says):
        tune(decoder(), sets, out=tmp_path, **options)


def point(speed: float, loss: float, changed: float = 0.0, name: int = 0) -> Point:
    policy = Policy.bild(max_draft_tokens=name + 1)
    return Point(policy, {"a": 30 - loss}, {"a": loss}, 1 / speed, speed, changed)


def test_the_front_has_no_point_that_another_beats():
    points = [point(1.0, 0.0), point(2.0, 0.5), point(1.5, 0.5), point(1.8, 0.2), point(3.0, 4.0), point(1.7, 0.3)]
    assert [(each.speedup, each.worst_loss) for each in pareto(points)] == [(3, 4), (2, 0.5), (1.8, 0.2), (1, 0)]
    assert len(distinct([point(2.0, 0.5), point(2.0, 0.5), point(2.0, 0.6)])) == 2


def test_names_of_looked_up_policies_mean_them():
    lossless = [*exact_policies(), Policy.speculative_sampling(window=3), Policy.no_fallback(window=4)]
    lossless += neighbours(Policy.bild(fallback_threshold=0.4, keeps_doubtful=True))
    for policy in [*default_grid()[:40], *lossless, *neighbours(Policy.bild(fallback_threshold=0.4, verify_end=0.6))]:
        assert Policy().parse(method_name(policy)) == policy
    own = Policy.bild(fallback_threshold=0.98, rollback_threshold=2)
    assert {p.max_draft_tokens for p in neighbours(own)} == {5, 7, 10, 15, 30}
    assert max(p.hand_over.threshold for p in neighbours(own)) <= 1


def test_a_middle_model_is_tried_losslessly_beside_what_was_chosen(tmp_path):
    three = BigLittleDecoder(
        large_of("t5", 1), small_of("t5", 1, "noisy"), word_tokenizer(), middle=large_of("t5", 1), middle_window=9
    )
    said = []
    own = bench.Bench(three.using(None), {"one": examples(4)}, options={"max_new_tokens": 8}, say=said.append)
    found = try_middle(three, own, Policy.bild(), tmp_path / "middle.jsonl")
    assert found.plan.levels == ("large", "middle", "small") and found.policy.lossless and found.speedup.value > 0
    assert found.window == found.plan.windows[1] and found.to_dict()["windows"] == list(found.plan.windows)
    assert any(str(found.plan) in line for line in said)
    rows = [json.loads(line) for line in (tmp_path / "middle.jsonl").read_text().splitlines()]
    models = {row["method"]: set(row["stats"]["num_steps_by_model"]) for row in rows}
    assert "middle" in models["cascade"] and "middle" not in models["chosen"]
    assert three.middle is not None and three._middle.window == 9
    chain = BigLittleDecoder(
        large_of("t5", 1), small_of("t5", 1, "noisy"), word_tokenizer(), middle="small", drafter="ngram"
    )
    with pytest.raises(InputError, match="tuning tries a middle model between a small one"):
        tune(chain, {"one": examples(4)}, out=tmp_path / "chain")
