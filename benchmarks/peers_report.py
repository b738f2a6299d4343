"""What benchmarks/peers.py measured, as the section of docs/performance.md, a plot and a file of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from machine import describe

from bild.evaluation import Summary
from bild.evaluation.bootstrap import Estimate
from bild.evaluation.figures import ALL

RESULTS = Path(__file__).resolve().parent / "results"


def keep(summary: Summary, line: dict[str, Any]) -> Path:
    """Write the figures with machine and versions to ``benchmarks/results/peers.json``."""
    figures = {
        name: {
            method: {
                "ms_per_text": 1e3 * each.total_s / of_set.num_examples,
                "ms_per_token": each.ms_per_token,
                "latency_median_ms": each.latency_median_ms,
                "latency_p95_ms": each.latency_p95_ms,
                "speedup": plain(each.speedup),
                "bleu": plain(each.quality["bleu"]),
                "bleu_difference": plain(each.difference["bleu"]),
                "same_tokens": each.same_tokens,
                "large_share": each.large_share,
            }
            for method, each in of_set.methods.items()
        }
        for name, of_set in summary.sets.items()
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "peers.json"
    sizes = {name: of_set.num_examples for name, of_set in summary.sets.items()}
    values = {"machine": describe(), "texts": sizes, "baseline": summary.baseline, **line, "figures": figures}
    file.write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
    return file


def render(file: Path, picture: str) -> str:
    """The section of docs/performance.md.

    Args:
        file: that :func:`keep` wrote.
        picture: the plot's address, relative to the page.
    """
    values = json.loads(file.read_text(encoding="utf-8"))
    sets = [name for name in values["figures"] if name != ALL]
    whole = values["figures"].get(ALL) or values["figures"][sets[0]]
    lines = [
        heading(values) + "; batch 1, text in to text out, all methods in turn on every text; "
        "times as fast as our large model alone run eagerly, in brackets the 95 % paired bootstrap interval.",
        "",
        f"![Milliseconds a text]({picture})",
        "",
        "| method | ms a text | ms a token | p95 ms | times as fast | "
        + " | ".join(f"BLEU {name} (difference)" for name in sets)
        + " | same text as large |",
        "|---" * (6 + len(sets)) + "|",
    ]
    for method in sorted(whole, key=lambda name: whole[name]["ms_per_text"]):
        row = whole[method]
        bleu = [values["figures"][name][method] for name in sets]
        cells = [
            f"`{method}`",
            f"{row['ms_per_text']:.1f}",
            f"{row['ms_per_token']:.2f}",
            f"{row['latency_p95_ms']:.1f}",
        ]
        cells += ["{value:.2f} [{low:.2f}, {high:.2f}]".format(**row["speedup"])]
        cells += [f"{each['bleu']['value']:.2f} ({each['bleu_difference']['value']:+.2f})" for each in bleu]
        lines.append("| " + " | ".join([*cells, f"{row['same_tokens']:.0%}"]) + " |")
    lines += ["", f"Each peer at its fastest setting against `{values['ours']}`:", ""]
    lines += ["| peer | setting | our row is … times as fast |", "|---|---|---|"]
    for peer, ratio in values["speedup"].items():
        low, high = values["interval"][peer]
        lines.append(f"| {peer} | `{values['settings'][peer]}` | {ratio:.2f} [{low:.2f}, {high:.2f}] |")
    lines += [f"\n`{name}` was not run: {why}" for name, why in values["failed"].items()]
    return "\n".join(lines)


def heading(values: dict[str, Any]) -> str:
    """The machine, versions, commit and data of a run."""
    facts, versions = values["machine"], values["machine"]["versions"]
    texts = ", ".join(f"{count} texts of {name}" for name, count in values["texts"].items() if name != ALL)
    return (
        f"{facts['cpu']} ({', '.join(facts['flags'])}), {facts['threads']} threads, torch {versions['torch']}, "
        f"transformers {versions['transformers']}, commit {facts['commit']}, {facts['date'][:10]}; {texts}"
    )


def plot(file: Path, picture: Path) -> None:
    """Bars of milliseconds a text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    values = json.loads(file.read_text(encoding="utf-8"))
    whole = values["figures"].get(ALL) or next(iter(values["figures"].values()))
    names = sorted(whole, key=lambda name: -whole[name]["ms_per_text"])
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(names) + 0.8), layout="constrained")
    ours = [name.split(":")[0] in ("bild", "exact", "large", "small") for name in names]
    bars = axes.barh(names, [whole[name]["ms_per_text"] for name in names],
                     color=["#dd8452" if own else "#8c9fb8" for own in ours])  # fmt: skip
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_xlabel("ms a text, batch 1 (orange: bild)")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture)
    pyplot.close(figure)


def plain(estimate: Estimate) -> dict[str, float]:
    """An estimate as JSON values."""
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
