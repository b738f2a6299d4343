"""Tuning a tiny pair, from the grid to the pair on disk."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from types import SimpleNamespace

import pytest

from bild import BigLittleDecoder, Policy
from bild.errors import InputError
from bild.evaluation import Example
from bild.tuning import Point, default_grid, pareto, tune
from bild.tuning import search as tuning_search
from bild.tuning.search import Search, distinct, neighbours
from bild.tuning.tune import FINALS, RESULT, TRACES, method_name
from tests.models.test_generation_agrees import large_of, small_of
from tests.networks import word_tokenizer

GRID = [
    Policy.bild(fallback_threshold=fallback, rollback_threshold=rollback, verify_end=True)
    for fallback in (0.2, 0.5, 1.01)
    for rollback in (0.0, 2.0, 9.0)
]


@cache
def decoder() -> BigLittleDecoder:
    return BigLittleDecoder(large_of("t5", 1), small_of("t5", 1, "noisy"), word_tokenizer())


@cache
def examples(count: int) -> tuple[Example, ...]:
    """Texts whose reference is what the large model writes: it loses nothing, all others do."""
    words, rng = list(word_tokenizer().get_vocab()), Random(0)
    sources = [" ".join(rng.choice(words[10:]) for _ in range(rng.randint(2, 6))) for _ in range(count)]
    texts = decoder().generate(sources, "large", max_new_tokens=8)
    return tuple(Example(str(i), source, (r.text,)) for i, (source, r) in enumerate(zip(sources, texts, strict=True)))


def run(out, budget: float, **options):
    sets = {"one": examples(8)[:4], "two": examples(8)[4:]}
    return tune(decoder(), sets, out=out, budget=budget, grid=GRID, max_new_tokens=8, **options)


def test_the_budget_decides(tmp_path):
    strict = run(tmp_path / "strict", 0.0)
    loose = run(tmp_path / "loose", 100.0)
    assert strict.within_budget and max(strict.loss.values()) == 0
    assert loose.policy != strict.policy and max(loose.loss.values()) > 0
    assert set(strict.loss) == {"one", "two"}
    # Points that were looked up say what running them says.
    by_policy = {point.policy: point for point in loose.points}
    assert by_policy[loose.policy].loss == pytest.approx(loose.loss)
    assert all(a.seconds <= b.seconds for a, b in zip(loose.points, loose.points[1:], strict=False))
    evidence = loose.evidence()
    assert evidence["dev"]["one"]["texts"] == 4 and evidence["dev"]["all"]["bleu_large"][0] == pytest.approx(100)
    assert json.loads((tmp_path / "loose" / RESULT).read_text())["policy"] == loose.policy.to_dict()


def test_what_nothing_meets_gives_the_nearest(tmp_path):
    """Only loose policies in the grid: all lose, and the one that loses least is said to miss the budget."""
    sets = {"one": examples(8)}
    grid = [policy for policy in GRID if policy.acceptance.threshold > 2 and policy.hand_over.threshold < 1]
    found = tune(decoder(), sets, out=tmp_path, budget=0.0, grid=grid, max_new_tokens=8)
    assert not found.within_budget
    assert max(found.loss.values()) == pytest.approx(min(point.worst_loss for point in found.points))


class Flattered(Search):
    """Fast policies lose nothing on the first texts; on all texts a policy loses the more the faster it is."""

    def __init__(self, first: float) -> None:
        self.first, self.budget, self.progress = first, 0.3, lambda line: None
        self.texts = SimpleNamespace(first=lambda count: [0], examples=[0, 1])

    def points(self, policies, texts):
        loss = (lambda t: self.first) if len(texts) == 1 else (lambda t: 10 * (1 - t))
        thresholds = {policy: policy.hand_over.threshold for policy in policies}
        found = [Point(p, {}, {"a": loss(t)}, 1 + t, 1 / (1 + t)) for p, t in thresholds.items()]
        return sorted(found, key=lambda point: point.seconds)


@pytest.mark.parametrize("first", [0.0, 50.0])
def test_policies_go_on_to_all_texts_until_one_keeps_the_budget(first, monkeypatch):
    """The two fastest, then the next two …: else what the first texts say of them would decide alone."""
    monkeypatch.setattr(tuning_search, "SECOND_ROUND", 2 if first == 0 else 11)
    found = Flattered(first).run([Policy.bild(fallback_threshold=step / 10) for step in range(11)])
    kept = [point for point in found if point.worst_loss <= 0.3]
    assert kept and kept[0].policy.hand_over.threshold == pytest.approx(0.975)
    assert Policy.bild(fallback_threshold=1.0) in [point.policy for point in kept]


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
        ({"a": [Example("1", "x")]}, {}, "a: example 1 has no reference"),
        ({"a": [Example("1", "x", ("y",))]}, {"budget": -0.1}, "budget is -0.1; allowed is 0 or more"),
        ({"a": [Example("1", "x", ("y",))]}, {"metric": "comet"}, "metric is 'comet'; allowed are bleu, chrf"),
        ({"a": []}, {}, "no examples to tune on"),
    ],
)
def test_bad_input_is_one_line(sets, options, says, tmp_path):
    with pytest.raises(InputError, match=says):
        tune(decoder(), sets, out=tmp_path, **options)


def point(speed: float, loss: float) -> Point:
    return Point(Policy(), {"a": 30 - loss}, {"a": loss}, 1 / speed, speed)


def test_the_front_has_no_point_that_another_beats():
    points = [point(1.0, 0.0), point(2.0, 0.5), point(1.5, 0.5), point(1.8, 0.2), point(3.0, 4.0), point(1.7, 0.3)]
    assert [(each.speedup, each.worst_loss) for each in pareto(points)] == [(3, 4), (2, 0.5), (1.8, 0.2), (1, 0)]
    assert len(distinct([point(2.0, 0.5), point(2.0, 0.5), point(2.0, 0.6)])) == 2


def test_names_of_looked_up_policies_mean_them():
    for policy in [*default_grid()[:40], *neighbours(Policy.bild(fallback_threshold=0.4, verify_end=0.6))]:
        assert Policy().parse(method_name(policy)) == policy
    own = Policy.bild(fallback_threshold=0.98, rollback_threshold=2)
    assert {p.max_draft_tokens for p in neighbours(own)} == {5, 7, 10, 15, 30}
    assert max(p.hand_over.threshold for p in neighbours(own)) <= 1
