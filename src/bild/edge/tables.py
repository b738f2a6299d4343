"""The tables of ``bild simulate``: each a system, its figures simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bild.edge.costs import Costs
from bild.edge.fleet import ROUTINGS, Fleet, simulate_fleet
from bild.edge.link import Link
from bild.edge.networks import Shards, alone, plan_of, two_stages
from bild.edge.plan import Batch, shares
from bild.edge.recording import Recording, Text
from bild.edge.window import CONTROLLERS
from bild.errors import InputError

USERS, ROWS, WINDOW = (4, 8, 16, 32), 8, 4
RTT_MS, DEVICES, TARGETS, TEXTS = (1, 20, 80), 16, 2, 96
FLEETS = (1, 2, 4, 8, 16, 32, 64)
NODES, RATIOS, SHARDS_WINDOW = (2, 3, 4, 8), (1, 3, 5, 10), 8
BAND_HZ, EFFICIENCIES, BITS_A_TOKEN = 1e6, (1.0, 2.0, 4.0), 16


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading, and what they were made of."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """As a page shows it."""
        lines = [f"Simulated: {self.title}", "", _line(self.head), _line(["---"] * len(self.head))]
        return "\n".join([*lines, *(_line([_shown(cell) for cell in row]) for row in self.rows)])

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        rows = [dict(zip(self.head, row, strict=True)) for row in self.rows]
        return {"simulated": True, "title": self.title, **self.facts, "rows": rows}


def edge_network(recording: Recording, costs: Costs, seed: int) -> Table:
    """Row 2: batches and windows by plan against one large batch size and against no drafts."""
    rows = []
    for users in USERS:
        texts = sorted(_texts(recording, users), key=len, reverse=True)
        plan = plan_of(texts, recording.alpha, costs, ROWS)
        equal = [Batch(len(texts[at : at + ROWS]), WINDOW) for at in range(0, users, ROWS)]
        loads = [BITS_A_TOKEN * text.source for text in texts]
        rates = [EFFICIENCIES[at % len(EFFICIENCIES)] for at in range(users)]
        rows.append(
            (
                users,
                _ms(_slowest(loads, rates)),
                _ms(plan.finish_s),
                _ms(two_stages(texts, plan.batches, costs)),
                _ms(two_stages(texts, equal, costs)),
                _ms(alone(texts, costs, ROWS)),
                " ".join(f"{batch.size}×{batch.window}" for batch in plan.batches[:4])
                + (" …" if len(plan.batches) > 4 else ""),
            )
        )
    head = (
        "users", "upload, ms", "plan says, ms", "planned, ms", f"batches of {ROWS}, window {WINDOW}, ms",
        f"no drafts, batches of {ROWS}, ms", "batches × windows",
    )  # fmt: skip
    return Table("when all users are served, one machine drafting and one verifying", head, rows)


def fleet(recording: Recording, costs: Costs, seed: int) -> Table:
    """Row 8: windows by controller, over links and routings."""
    rows = []
    for rtt_ms in RTT_MS:
        link = Link(rtt_ms / 1e3, rtt_ms / 1e4)
        for name, controller in {"none: the cloud alone": None, **CONTROLLERS}.items():
            cells: list[Any] = [rtt_ms, name]
            windows: list[float] = []
            for routing in ROUTINGS:
                own: Any = {"controller": controller, "routing": routing}
                found = simulate_fleet(
                    Fleet(devices=DEVICES, targets=TARGETS, texts=TEXTS, link=link, costs=costs, seed=seed, **own),
                    recording,
                )
                cells += [round(found.tokens_per_second), _ms(found.percentile(0.95))]
                windows.append(found.mean_window)
            rows.append((*cells, round(sum(windows) / len(windows), 1)))
    head = ["RTT, ms", "controller"]
    for routing in ROUTINGS:
        head += [f"{routing}: tokens/s", "p95, ms"]
    return Table(
        f"{TEXTS} texts of {DEVICES} devices, {TARGETS} targets, jitter a tenth of the RTT",
        [*head, "tokens a draft"],
        rows,
    )


def devices(recording: Recording, costs: Costs, seed: int) -> Table:
    """Row 10: how many devices one verifier serves."""
    rows = []
    link = Link(0.02, 0.002)
    for count in FLEETS:
        own: Any = {"devices": count, "texts": 10 * count + 40, "link": link, "costs": costs, "seed": seed}
        drafting = simulate_fleet(Fleet(controller=CONTROLLERS["cost"], **own), recording)
        cloud = simulate_fleet(Fleet(controller=None, **own), recording)
        rows.append(
            (
                count,
                round(drafting.tokens_per_second),
                round(drafting.tokens_per_second / count, 1),
                round(drafting.rows_per_pass, 1),
                round(drafting.busy, 2),
                round(drafting.bytes_up / drafting.tokens),
                round(cloud.tokens_per_second),
                round(cloud.busy, 2),
            )
        )
    head = (
        "devices", "tokens/s", "a device", "rounds a pass", "busy", "bytes up a token",
        "cloud alone: tokens/s", "cloud busy",
    )  # fmt: skip
    return Table("one verifier, RTT 20 ms, windows by cost", head, rows)


def shards(recording: Recording, costs: Costs, seed: int) -> Table:
    """Row 9: a large model on several nodes, plain against speculative."""
    share = costs.verify.token_s / max(1e-12, costs.verify.seconds(1, 1))
    rows = []
    for nodes in NODES:
        cells: list[Any] = [nodes]
        for read_share in (1.0, share):
            for ratio in RATIOS:
                own = Shards(nodes, 1.0, float(ratio), read_share, costs.draft_s / costs.verify.seconds(1, 1))
                cells.append(round(own.speedup(recording, SHARDS_WINDOW), 2))
        rows.append(cells)
    head = ["nodes", *(f"t1/t0 = {ratio}" for ratio in RATIOS), *(f"{ratio}, fitted" for ratio in RATIOS)]
    charged = f"a further token of a pass costs t0 or, fitted, {share:.2f} t0"
    title = f"speedup over plain decoding, window {SHARDS_WINDOW}; {charged}"
    return Table(title, head, rows)


SYSTEMS: dict[str, Callable[[Recording, Costs, int], Table]] = {
    "edge-network": edge_network,
    "fleet": fleet,
    "devices": devices,
    "shards": shards,
}
"""What can be simulated, by name."""


def simulated(system: str, recording: Recording, costs: Costs, seed: int = 0) -> Table:
    """The table of a system.

    Args:
        system: of :data:`SYSTEMS`.
        recording: of a pair.
        costs: of its passes.
        seed: of all that is left to chance.

    Raises:
        InputError: no such system.
    """
    if system not in SYSTEMS:
        raise InputError(f"system is {system!r}; allowed are {', '.join(SYSTEMS)}")
    table = SYSTEMS[system](recording, costs, seed)
    facts = {
        "recording": recording.told,
        "texts": len(recording.texts),
        "alpha": round(recording.alpha, 4),
        "costs": costs.to_dict(),
        "seed": seed,
    }
    return Table(table.title, table.head, table.rows, facts)


def _texts(recording: Recording, count: int) -> list[Text]:
    return [recording.texts[at % len(recording.texts)] for at in range(count)]


def _slowest(bits: Sequence[float], rates: Sequence[float]) -> float:
    """The longest upload, if the band is divided so that it is least."""
    parts = shares(bits, rates, "slowest")
    return max(size / (rate * part * BAND_HZ) for size, rate, part in zip(bits, rates, parts, strict=True))


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 1)


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _shown(cell: Any) -> str:
    return f"{cell:,}" if isinstance(cell, int) and cell >= 10_000 else str(cell)
