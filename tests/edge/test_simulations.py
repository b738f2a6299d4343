"""Clocks, plans and fleets against what can be computed by hand, by brute force or by formula."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from bild.edge.costs import Costs, PassCost
from bild.edge.fleet import Fleet, simulate_fleet
from bild.edge.link import Clock, Link
from bild.edge.networks import Shards, alone, two_stages
from bild.edge.plan import Batch, expected_tokens, flow_shop, planned, shares, stage_seconds
from bild.edge.recording import Recording, Text
from bild.edge.tables import SYSTEMS, simulated
from bild.edge.window import CostAware, Ema, Fixed
from bild.errors import InputError


def text(bits: str, source: int = 5) -> Text:
    return Text(source, tuple(bit == "1" for bit in bits))


def noisy(count: int, alpha: float, length: int = 20) -> Recording:
    rng = random.Random(7)
    return Recording([text("".join("01"[rng.random() < alpha] for _ in range(length))) for _ in range(count)])


def test_a_recording_says_what_any_window_comes_to():
    own = text("1101011")
    assert own.round(0, 4) == (4, 2, 3)
    assert own.round(3, 2) == (2, 1, 5)
    assert own.round(5, 4) == (2, 2, 7)
    assert own.round(5, 1) == (1, 1, 7)
    assert own.round(2, 0) == (0, 0, 3)
    # Token by token it is the text, whatever the window.
    for window in range(6):
        at, rounds = 0, 0
        while at < len(own):
            at, rounds = own.round(at, window)[2], rounds + 1
        assert at == 7 and rounds == [7, 4, 3, 3, 3, 3][window]


def test_recordings_come_back_and_others_are_refused(tmp_path):
    own = Recording([text("1101"), text("0", 9)], "two")
    own.save(tmp_path / "r.json")
    assert Recording.load(tmp_path / "r.json") == own and own.alpha == 3 / 5 and own.tokens == 5
    for wrong in ("", "[]", '{"texts": []}', '{"told": "", "texts": [{"source": 1, "agreed": "12"}]}'):
        (tmp_path / "w.json").write_text(wrong)
        with pytest.raises(InputError):
            Recording.load(tmp_path / "w.json")
    with pytest.raises(InputError, match="cannot read"):
        Recording.load(tmp_path / "none.json")


def test_a_clock_lets_things_happen_in_order():
    clock, seen = Clock(), []
    clock.after(2, lambda: seen.append(("b", clock.now)))
    clock.after(1, lambda: clock.after(1, lambda: seen.append(("c", clock.now))))
    clock.after(2, lambda: seen.append(("d", clock.now)))
    assert clock.run() == 2 and seen == [("b", 2), ("d", 2), ("c", 2)]
    with pytest.raises(ValueError, match="0 or more"):
        clock.after(-1, lambda: None)


def test_a_link_is_half_a_round_trip_and_its_bytes():
    chance = random.Random(1)
    assert Link(0.08, 0, 8000).one_way(500, chance) == pytest.approx(0.04 + 0.5)
    jitter = [Link(0.0, 0.01).one_way(0, chance) for _ in range(4000)]
    assert sum(jitter) / 4000 == pytest.approx(0.01, rel=0.06)
    for wrong in ({"rtt_s": -1}, {"jitter_s": -1}, {"bits_per_second": 0}):
        with pytest.raises(InputError):
            Link(**wrong)


def test_one_device_by_hand():
    # "1101" with window 2: round 1 keeps two and writes the third, round 2 keeps one and the text ends... by hand:
    # drafts of 2 and 1 tokens at 1 s, passes of 10 + tokens, link 3 s each way.
    costs = Costs(1.0, PassCost(10, 0, 1), "")
    fleet = Fleet(texts=1, controller=lambda: Fixed(2), link=Link(6.0), costs=costs)
    found = simulate_fleet(fleet, Recording([text("1101")]))
    assert found.latencies == (2 + 3 + 13 + 3 + 1 + 3 + 12 + 3,) and found.seconds == 40
    assert (found.tokens, found.rounds, found.drafted, found.accepted, found.passes) == (4, 2, 3, 3, 2)
    assert found.busy == pytest.approx(25 / 40)
    cloud = simulate_fleet(Fleet(texts=1, controller=None, link=Link(6.0), costs=costs), Recording([text("1101")]))
    assert cloud.latencies == (3 + 4 * 11 + 3,) and cloud.passes == 4


def test_devices_share_a_pass_by_hand():
    costs = Costs(0.0, PassCost(10, 1, 0), "")
    found = simulate_fleet(Fleet(devices=3, texts=3, controller=None, costs=costs), Recording([text("00")]))
    # The first has a pass to itself, all three share the next, and two are left for the last.
    assert found.passes == 3 and found.latencies == (11 + 13, 11 + 13 + 12, 11 + 13 + 12)


def test_a_queue_is_that_of_the_formula():
    """M/D/1: the mean wait is ρ s / (2 (1 − ρ))."""
    service, load = 1.0, 0.6
    fleet = Fleet(
        devices=300,
        texts=12000,
        rate=load / service,
        controller=None,
        rows=1,
        costs=Costs(0, PassCost(service)),
        seed=3,
    )
    found = simulate_fleet(fleet, Recording([text("0")]))
    wait = sum(found.latencies) / len(found.latencies) - service
    assert wait == pytest.approx(load * service / (2 * (1 - load)), rel=0.08)
    assert found.busy == pytest.approx(load, rel=0.03)


def test_one_seed_one_trace_and_routing_and_batching_matter():
    own = {"devices": 12, "targets": 3, "texts": 60, "rate": 40.0, "link": Link(0.02, 0.004), "rows": 2}
    recording = noisy(9, 0.7)
    first = simulate_fleet(Fleet(**own, routing="random", seed=1), recording)
    assert simulate_fleet(Fleet(**own, routing="random", seed=1), recording) == first
    assert simulate_fleet(Fleet(**own, routing="random", seed=2), recording) != first
    slow = own | {"costs": Costs(0.0003, PassCost(0.02, 0, 0.001)), "seed": 1}
    p95 = {
        (routing, batching): simulate_fleet(Fleet(**slow, routing=routing, batching=batching), recording).percentile(
            0.95
        )
        for routing in ("random", "round_robin", "shortest_queue")
        for batching in ("fifo", "length")
    }
    assert len(set(p95.values())) > 3 and p95["shortest_queue", "fifo"] < p95["random", "fifo"]
    for wrong in ({"devices": 0}, {"rate": 0.0}, {"routing": "best"}, {"batching": "all"}):
        with pytest.raises(InputError):
            Fleet(**wrong)


@pytest.mark.parametrize(("alpha", "f", "s", "d"), [(0.9, 40.0, 0.2, 1.0), (0.6, 2.0, 1.0, 1.0), (0.8, 10.0, 0.1, 0.5)])
def test_a_controller_finds_the_best_window(alpha, f, s, d):
    def rate(window: float) -> float:
        return expected_tokens(alpha, window) / (f + s * (window + 1) + d * window)

    best = max(range(1, 17), key=rate)
    rng, own, settled = random.Random(5), CostAware(), []
    for at in range(1500):
        drafted = own.window
        kept = 0
        while kept < drafted and rng.random() < alpha:
            kept += 1
        own.learn(drafted, kept, f + s * (drafted + 1), d * drafted)
        if at > 700:
            settled.append(own.window)
    assert own.alpha == pytest.approx(alpha, abs=0.05)
    assert rate(sum(settled) / len(settled)) > 0.97 * rate(best)
    # It moves by two tokens a round at most.
    assert all(abs(one - other) <= 2 for one, other in itertools.pairwise(settled))


def test_an_average_moves_the_window_both_ways():
    up, down = Ema(), Ema()
    for _ in range(30):
        up.learn(4, 4, 1, 1)
        down.learn(4, 0, 1, 1)
    assert up.window == 16 and down.window == 1
    with pytest.raises(InputError, match="window is 0"):
        Fixed(0)


def test_a_plan_is_the_best_there_is():
    rng = random.Random(2)
    for _ in range(6):
        lengths = sorted((rng.randint(3, 20) for _ in range(rng.randint(2, 5))), reverse=True)
        alpha, windows, largest = rng.uniform(0.3, 0.9), (1, 3), 3

        def draft(rows: int, window: int) -> float:
            return 0.3 * window + 0.05 * rows

        def verify(rows: int, window: int) -> float:
            return 1 + 0.1 * rows * (window + 1)

        def cost(batches: tuple[Batch, ...], lengths: list[int] = lengths, alpha: float = alpha) -> float:
            times, at = [], 0
            for batch in batches:
                times.append(stage_seconds(lengths[at : at + batch.size], batch, alpha, draft, verify))
                at += batch.size
            return flow_shop(times)

        found = planned(lengths, alpha, draft, verify, windows, largest)
        everything = [
            tuple(Batch(size, window) for size, window in zip(sizes, chosen, strict=True))
            for count in range(1, len(lengths) + 1)
            for sizes in itertools.product(range(1, largest + 1), repeat=count)
            if sum(sizes) == len(lengths)
            for chosen in itertools.product(windows, repeat=count)
        ]
        assert found.finish_s == pytest.approx(min(map(cost, everything))) == pytest.approx(cost(found.batches))


def test_a_band_is_divided_so_that_what_is_asked_is_least():
    bits, rates = [100.0, 400.0, 50.0], [1.0, 2.0, 4.0]

    def times(parts: list[float]) -> list[float]:
        return [size / (rate * part) for size, rate, part in zip(bits, rates, parts, strict=True)]

    slowest, total = (shares(bits, rates, goal) for goal in ("slowest", "sum"))
    assert sum(slowest) == pytest.approx(1) == pytest.approx(sum(total))
    grid = [(a / 60, b / 60, (60 - a - b) / 60) for a in range(1, 59) for b in range(1, 60 - a)]
    assert max(times(slowest)) <= min(max(times(list(parts))) for parts in grid)
    assert sum(times(total)) <= min(sum(times(list(parts))) for parts in grid)
    with pytest.raises(InputError):
        shares([0.0], [1.0], "sum")


def test_two_machines_with_one_round_a_batch_are_a_flow_shop():
    costs = Costs(1.0, PassCost(3, 0, 1), "")
    texts = [text("1"), text("11"), text("111"), text("1111")]
    # Each text is drafted to its end in one round.
    stages = [(len(each), 3 + len(each) + 1) for each in texts]
    assert two_stages(texts, [Batch(1, 8)] * 4, costs) == pytest.approx(flow_shop(stages))
    assert alone(texts[:2], costs, 2) == (3 + 2) + (3 + 1)
    # While one batch is verified the other is drafted.
    both = two_stages([text("0" * 6)] * 2, [Batch(1, 1)] * 2, costs)
    assert both < 2 * two_stages([text("0" * 6)], [Batch(1, 1)], costs)


def test_shards_are_those_of_the_formulas():
    t0, t1, nodes, window = 1.0, 4.0, 5, 3
    k = window + 1
    own = Shards(nodes, t0, t1)
    agreed = text("1" * (3 * k))
    assert own.plain_s(agreed) == pytest.approx(3 * k * (t0 + (nodes - 1) * t1))
    assert own.speculative_s(agreed, window) == pytest.approx(3 * (k * t0 + (nodes - 1) * t1))
    saved = (own.plain_s(agreed) - own.speculative_s(agreed, window)) / len(agreed)
    assert saved == pytest.approx((nodes - 1) * t1 * (k - 1) / k)
    assert Shards(1, 1.0, 9.0).speedup(Recording([text("0000")]), 3) < 1
    with pytest.raises(InputError):
        Shards(0, 1.0, 1.0)


def test_costs_are_fitted_and_never_negative():
    shapes = [(rows, rows * width) for rows in (1, 2, 4) for width in (1, 4)]
    found = PassCost.fit(shapes, [2 + 0.5 * rows + 0.1 * tokens for rows, tokens in shapes])
    assert (found.base_s, found.row_s, found.token_s) == pytest.approx((2, 0.5, 0.1))
    falling = PassCost.fit(shapes, [5 - 0.1 * tokens for _, tokens in shapes])
    assert min(falling.base_s, falling.row_s, falling.token_s) == 0
    with pytest.raises(InputError):
        PassCost(-1)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_table_says_that_it_is_simulated(system):
    table = simulated(system, noisy(8, 0.8, 10), Costs())
    assert table.markdown().startswith("Simulated: ") and table.to_dict()["simulated"] is True
    assert all(len(row) == len(table.head) for row in table.rows) and len(table.rows) >= 4
    with pytest.raises(InputError, match="allowed are edge-network, fleet"):
        simulated("moon", noisy(1, 0.5), Costs())


@pytest.mark.parametrize("cost", [{"base_s": math.inf}, {"base_s": 0.0, "token_s": -1.0}, {"base_s": math.nan}])
def test_a_pass_costs_a_number_of_seconds(cost):
    with pytest.raises(InputError, match="allowed are 0 s or more"):
        PassCost(**cost)
