"""What the paper reports (arXiv 2302.07863): one T4, batch 1, its own checkpoints and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bild.reproduction.result import table

SETS = ("IWSLT BLEU", "WMT BLEU", "XSUM ROUGE-L", "CNN/DM ROUGE-L")
TABLE1 = {
    "large alone": ((40.32, None), (31.38, None), (35.08, None), (41.54, None)),
    "unaligned, minimal loss": ((40.33, 1.43), (31.28, 1.34), (35.12, 1.48), (41.44, 1.71)),
    "unaligned, within one point": ((39.44, 1.58), (30.47, 1.43), (34.02, 1.72), (40.57, 2.05)),
    "aligned, minimal loss": ((40.24, 1.62), (31.26, 1.47), (35.05, 1.50), (41.52, 1.85)),
    "aligned, within one point": ((39.13, 1.78), (30.33, 1.70), (33.95, 1.80), (40.96, 2.12)),
}
TABLE3 = {
    "large alone": ((40.32, None), (35.08, None)),
    "rejection sampling": ((39.93, 1.28), (35.00, 1.25)),
    "BiLD, matching latency": ((40.54, 1.23), (35.30, 1.42)),
    "BiLD, matching quality": ((39.87, 1.49), (34.96, 1.50)),
}
TABLE4 = {
    "IWSLT, rejection sampling": (23.24, 9.81),
    "IWSLT, BiLD": (21.09, 1.56),
    "XSUM, rejection sampling": (36.84, 24.24),
    "XSUM, BiLD": (32.33, 6.41),
}
TABLE5 = {
    "large alone": ((39.24, None), (34.00, None)),
    "BiLD, no loss": ((39.72, 1.51), (34.34, 1.22)),
    "BiLD, minimal loss": ((39.26, 1.63), (34.04, 1.45)),
    "BiLD, within one point": ((38.27, 1.80), (33.10, 1.85)),
}
SUMMARISED = ("IWSLT BLEU", "XSUM ROUGE-L")

Cells = tuple[tuple[float, float | None], ...]


def quality_table(rows: Mapping[str, Cells], sets: Sequence[str]) -> str:
    """Quality and speedup, a column a data set."""
    lines = [
        [name, *(f"{quality:.2f}" + (f" · {speedup:.2f}×" if speedup else "") for quality, speedup in cells)]
        for name, cells in rows.items()
    ]
    return "In the paper (quality · speedup):\n\n" + table(["", *sets], lines)


def share_table() -> str:
    """Table 4 as Markdown: fallbacks and rollbacks of both rules, in per cent."""
    rows = [[name, f"{fallbacks:.2f} %", f"{rollbacks:.2f} %"] for name, (fallbacks, rollbacks) in TABLE4.items()]
    return "In the paper, which names no denominators:\n\n" + table(["", "fallbacks", "rollbacks"], rows)
