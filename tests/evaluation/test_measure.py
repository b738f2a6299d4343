"""The measuring measured: known costs give known speedups, and drift cancels."""

from __future__ import annotations

import pytest

from bild.errors import InputError
from bild.evaluation import evaluate
from bild.evaluation import measure as measuring
from bild.evaluation.journal import Journal
from bild.evaluation.measure import measure
from tests.evaluation.fakes import Clock, Fake, examples


def speedup(methods, clock, count=30, **options) -> float:
    summary = evaluate(methods, examples(count), clock=clock, warm_up=0, resamples=10, **options)
    return summary.sets["texts"].methods[methods[-1].name].speedup.value


def test_known_costs_give_the_known_speedup_and_times():
    clock = Clock()
    methods = [Fake("large", clock, 4.0), Fake("bild", clock, 1.6)]
    summary = evaluate(methods, examples(7), clock=clock, resamples=50)
    figures = summary.sets["texts"].methods["bild"]
    assert (figures.speedup.value, figures.speedup.low, figures.speedup.high) == pytest.approx((2.5, 2.5, 2.5))
    assert (figures.latency_median_ms, figures.latency_p95_ms) == pytest.approx((1600, 1600))
    assert figures.ttft_median_ms == pytest.approx(400)
    # "TEXT NUMBER 0 OF THESE" and its end token are 23 tokens.
    assert figures.ms_per_token == pytest.approx(1600 / 23)
    assert figures.total_s == pytest.approx(7 * 1.6) and figures.num_tokens == 7 * 23
    assert [method.closed for method in methods] == [1, 1]


def test_a_method_may_take_its_own_time():
    clock = Clock()
    assert speedup([Fake("large", clock, 4.0), Fake("worker", clock, 4.0, total_s=0.5)], clock) == pytest.approx(8)


def test_who_goes_first_moves_on_with_every_example():
    clock, log = Clock(), []
    names = "abc"
    measure([Fake(name, clock, log=log) for name in names], {"set": examples(4)}, Journal(names), warm_up=0)
    order = "".join(name for name, _ in log)
    assert order == "abc" + "bca" + "cab" + "abc"
    assert [source for _, source in log[::3]] == [example.source for example in examples(4)]


def test_interleaving_cancels_a_steady_drift_that_other_orders_do_not(monkeypatch):
    costs = {"large": 3.0, "b": 1.0, "c": 1.5}

    def steady() -> Clock:
        return Clock(lambda call: 1 + 0.01 * call)

    def measured(clock: Clock) -> float:
        return speedup([Fake(name, clock, cost) for name, cost in costs.items()], clock)

    assert measured(steady()) == pytest.approx(2, rel=1e-12)
    monkeypatch.setattr(measuring, "_rotated", lambda methods, by: list(methods))
    assert abs(measured(steady()) / 2 - 1) > 0.005

    clock, seconds = steady(), {}
    for name, cost in costs.items():
        method = Fake(name, clock, cost)
        summary = evaluate([method], examples(30), clock=clock, warm_up=0, resamples=10)
        seconds[name] = summary.sets["texts"].methods[name].total_s
    assert abs(seconds["large"] / seconds["c"] / 2 - 1) > 0.2


def test_interleaving_cancels_calls_that_each_take_longer_by_a_share():
    clock = Clock(lambda call: 1.002**call)
    methods = [Fake("large", clock), Fake("same", clock)]
    assert speedup(methods, clock, 100) == pytest.approx(1, abs=1e-4)
    assert clock.drift(100) > 1.2


def test_warm_up_is_decoded_and_not_recorded():
    clock, log = Clock(), []
    journal = Journal("ab")
    # A cold start: the first six calls are slow.
    clock.drift = lambda call: 50.0 if call < 6 else 1.0
    measure([Fake(name, clock, log=log) for name in "ab"], {"set": examples(5)}, journal, warm_up=3, clock=clock)
    assert len(log) == 2 * (3 + 5) and {source for _, source in log[:6]} == {e.source for e in examples(3)}
    assert [record.total_s for methods in journal.records.values() for record in methods.values()] == [
        pytest.approx(1.0)
    ] * 10


def test_the_prefix_is_put_before_every_source_warm_up_included():
    clock, log = Clock(), []
    measure([Fake("a", clock, log=log)], {"set": examples(2)}, Journal("a"), warm_up=1, prefix="summarize: ")
    assert [source for _, source in log] == ["summarize: " + examples(2)[at].source for at in (0, 0, 1)]


def test_a_failure_is_recorded_and_the_others_go_on():
    def refuse(text: str) -> str:
        if "number 1 " in text:
            raise InputError("too\nlong")
        if "number 2 " in text:
            raise RuntimeError("broken")
        return text

    clock, journal = Clock(), Journal(["a", "b"])
    measure([Fake("a", clock), Fake("b", clock, write=refuse)], {"set": examples(4)}, journal)
    errors = [journal.records["set", str(at)]["b"].error for at in range(4)]
    assert errors == [None, "too long", "RuntimeError: broken", None]
    assert all(journal.records["set", str(at)]["a"].text for at in range(4))


def test_names_must_be_unique():
    clock = Clock()
    with pytest.raises(InputError, match="method 'a' is there twice"):
        measure([Fake("a", clock), Fake("a", clock)], {"set": examples(1)}, Journal(["a"]))
    with pytest.raises(InputError, match="example id 'set/0' is there twice"):
        measure([Fake("a", clock)], {"set": examples(1) * 2}, Journal(["a"]))


def test_progress_counts_examples():
    clock, seen = Clock(), []
    measure(
        [Fake("a", clock)], {"x": examples(2), "y": examples(1)}, Journal("a"), progress=lambda *at: seen.append(at)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
