"""Latency under load: constants that went in come out, and Little's law holds of what is read."""

from __future__ import annotations

import json
import math
import random

import pytest

from bild import BigLittleDecoder, InputError, Policy
from bild.decoding import Greedy
from bild.tuning.latency import (
    LatencyModel,
    Parts,
    Point,
    Served,
    best_window,
    load,
    read_runs,
    read_server_log,
    single_stream,
    stops_paying,
    stretches,
)
from tests.networks import build


def test_two_constants_come_out_of_what_they_made():
    """The closed form is the fixed point of both laws."""
    true = LatencyModel(0.2, 0.05)
    points = [Point(rate, true.at(rate)) for rate in (0.5, 2, 6, 12)]
    for point in points:
        assert true.alone + true.neighbour * point.in_flight == pytest.approx(point.latency)
    found = LatencyModel.fit(points)
    assert (found.alone, found.neighbour) == pytest.approx((0.2, 0.05)) and found.explained(points) == pytest.approx(1)
    assert found.capacity == pytest.approx(20) and found.at(20.1) == math.inf and found.at(0) == pytest.approx(0.2)
    noisy = [Point(p.rate, p.latency * factor) for p, factor in zip(points, (1.02, 0.97, 1.03, 0.99), strict=True)]
    assert 0.9 < LatencyModel.fit(noisy).explained(noisy) < 1


def test_nothing_is_fitted_below_zero():
    assert LatencyModel.fit([Point(1, 0.3), Point(4, 0.2)]).neighbour == 0
    steep = LatencyModel.fit([Point(1, 0.01), Point(10, 2.0)])
    assert steep.alone >= 0 and steep.neighbour > 0
    for points in ([Point(1, 0.3)], [Point(1, 0.3), Point(1, 0.3)]):
        with pytest.raises(InputError, match="two different loads"):
            LatencyModel.fit(points)


def test_the_parts_of_a_constant_come_out_of_its_windows():
    true, yields = Parts(0.03, 0.4, 0.05), {0: 1.0, 2: 2.2, 4: 3.1, 8: 3.9}
    constants = {window: true.at(window, each) for window, each in yields.items()}
    found = Parts.fit(constants, yields)
    assert (found.prefill, found.verify, found.draft) == pytest.approx((0.03, 0.4, 0.05))
    assert constants[0] == pytest.approx(0.43) and constants[4] == pytest.approx(0.03 + (0.4 + 4 * 0.05) / 3.1)
    with pytest.raises(InputError, match="three windows or more, got 2"):
        Parts.fit({0: 1.0, 2: 0.5}, yields)


def test_speculation_pays_until_its_neighbours_cost_more():
    models = {0: LatencyModel(0.4, 0.05), 2: LatencyModel(0.3, 0.06), 8: LatencyModel(0.2, 0.1)}
    assert [best_window(models, rate) for rate in (0, 5, 7, 15)] == [8, 8, 2, 0]
    # 0.4 / (1 − 0.05 r) = 0.3 / (1 − 0.06 r)
    assert stops_paying(models) == pytest.approx(0.1 / 0.009)
    assert stops_paying({0: models[0], 2: LatencyModel(0.3, 0.04)}) is None
    assert stops_paying({0: models[0], 2: LatencyModel(0.5, 0.06)}) == 0


# An integer of 400 digits is JSON, and no float.
ODD_TIMES = ((None, 1), ("x", 1), (1, None), (1, "1"), (10**400, 1), (1, 10**400))


def test_a_servers_log_is_read_in_stretches(tmp_path):
    true, rng, now, lines = LatencyModel(0.1, 0.02), random.Random(0), 0.0, ["started", "{}", "[1]"]
    for rate in (2.0, 30.0):
        for _ in range(200):
            now += 1 / rate
            ms = 1e3 * true.at(rate) * rng.uniform(0.9, 1.1)
            lines.append(json.dumps({"id": "x", "at": now, "path": "/translate", "status": 200, "ms": ms}))
    lines.append(json.dumps({"at": now, "path": "/translate", "status": 503, "ms": 9e9}))
    # Whatever else stands there.
    lines += [json.dumps({"at": at, "status": 200, "ms": ms}) for at, ms in ODD_TIMES]
    (tmp_path / "log").write_text("\n".join(lines))
    served = read_server_log(tmp_path / "log")
    assert len(served) == 400
    found = LatencyModel.fit(stretches(served))
    assert found.alone == pytest.approx(0.1, rel=0.1) and found.neighbour == pytest.approx(0.02, rel=0.15)
    assert Point.of([Served(0, 1.0), Served(2, 3.0), Served(1, 2.0)]) == Point(1.0, 2.0)
    (tmp_path / "few").write_text("\n".join(lines[:6]))
    for name, says in (("few", "tells of 3 answered requests"), ("gone", "cannot read")):
        with pytest.raises(InputError, match=says):
            read_server_log(tmp_path / name)


def test_texts_of_one_stream_are_charged_by_their_counts(tmp_path):
    rng, lines = random.Random(1), []
    for _ in range(30):
        small, large, drafted = rng.randint(1, 40), rng.randint(1, 20), rng.randint(0, 30)
        stats = {"num_small_steps": small, "num_large_steps": large, "num_draft_tokens": drafted, "large_share": 0.5}
        seconds = 0.01 + 0.002 * small + 0.01 * large + 0.001 * (drafted + large)
        lines.append(json.dumps({"text": "x", "stats": {**stats, "total_s": seconds}}))
    (tmp_path / "runs").write_text(
        "\n".join([*lines, json.dumps({"text": None, "stats": None}), '{"stats": {"total_s": null}}'])
    )
    costs, explained = single_stream(*read_runs(tmp_path / "runs"))
    assert explained == pytest.approx(1) and costs.to_dict()["small step"] == pytest.approx(2)
    assert costs.to_dict()["token read by large"] == pytest.approx(1)
    (tmp_path / "none").write_text("{}")
    with pytest.raises(InputError, match="holds no texts with counts"):
        read_runs(tmp_path / "none")


def test_requests_that_come_at_random_are_all_served():
    decoder = BigLittleDecoder(build("llama"), build("llama", seed=1, layers=1))
    jobs = decoder.jobs([[5, 6, 7], [9, 4], [7, 3]], max_new_tokens=4)
    found = load(decoder, jobs, decoder.rules(Policy.exact(), Greedy()), 500.0, rows=2)
    assert len(found.served) == 3 and found.point.rate > 0 and found.point.latency > 0
    assert found.stats.num_tokens == sum(
        len(result.token_ids) for result in decoder.generate([[5, 6, 7], [9, 4], [7, 3]], "exact", max_new_tokens=4)
    )
    with pytest.raises(InputError, match="rate is 0; allowed is more than 0"):
        load(decoder, jobs, decoder.rules(Policy.exact(), Greedy()), 0)
