"""What benchmarks/engines.py measured: ratios at each engine's best, and the section of docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MAX_BLEU_LOSS = 0.3
BEAMS = 4
"""Of the searches that are compared."""
Result = dict[str, Any]


def best(results: Sequence[Result], task: str, beams: int = 1, **wanted: Any) -> Result | None:
    """The fastest setting of those wanted."""
    found = [
        each
        for each in results
        if each["task"] == task
        and each.get("beams", 1) == beams
        and all(each[key] == value for key, value in wanted.items())
    ]
    if not found:
        return None
    return (min if task == "latency" else max)(found, key=lambda each: float(each["value"]))


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """The last line: ours at its best against CTranslate2 at its best, in each dtype; above 1: we are faster."""
    line: dict[str, Any] = {"latency": {}, "throughput": {}, "large_alone": {}, "beams": {}}
    dtypes = sorted({each["dtype"] for each in results if each["engine"] == "ctranslate2"})
    for task in ("latency", "throughput"):
        ours = _quick(results, task, "int8")
        for dtype in dtypes:
            theirs = best(results, task, engine="ctranslate2", policy="large", dtype=dtype)
            if theirs is not None and ours is not None:
                line[task][f"ctranslate2-{dtype}"] = _ratio(ours, theirs)
        for name, beams in (("large_alone", 1), ("beams", BEAMS)):
            large = best(results, task, beams, engine="bild", policy="large", dtype="int8")
            theirs = best(results, task, beams, engine="ctranslate2", policy="large")
            if large is not None and theirs is not None:
                line[name][task] = _ratio(large, theirs)
    for name, policy in (("bleu", "bild"), ("bleu_large", "large"), ("bleu_small", "small")):
        found = best(results, "latency", engine="bild", policy=policy, dtype="int8")
        line[name] = None if found is None else found["bleu"]
    return line


def _quick(results: Sequence[Result], task: str, dtype: str) -> Result | None:
    """Our fastest row of two models that loses at most 0.3 BLEU to the large model alone."""
    large = best(results, task, engine="bild", policy="large", dtype=dtype)
    rows = [best(results, task, engine="bild", policy=policy, dtype=dtype) for policy in ("bild", "exact")]
    kept = [row for row in rows if row and large and row["bleu"] >= large["bleu"] - MAX_BLEU_LOSS]
    return (min if task == "latency" else max)(kept, key=lambda each: float(each["value"]), default=None)


def _ratio(ours: Result, theirs: Result) -> float:
    by = theirs["value"] / ours["value"] if ours["task"] == "latency" else ours["value"] / theirs["value"]
    return round(by, 3)


def name_of(result: Result) -> str:
    """A setting in a few words."""
    lanes, threads = result["lanes"], result["threads"]
    text = f"{threads} thread{'s' * (threads > 1)}" if lanes == 1 else f"{lanes} lanes of {threads}"
    return f"{text}, batch {result['batch']}" if result["task"] == "throughput" else text


def render(files: Sequence[Path]) -> str:
    """A table for every machine that was measured."""
    return "\n\n".join(_machine(json.loads(file.read_text(encoding="utf-8"))) for file in files)


def _machine(values: dict[str, Any]) -> str:
    facts, results, line = values["machine"], values["results"], values["summary"]
    texts = ", ".join(f"{count} texts of {name}" for name, count in values["texts"].items())
    rows = [
        f"### {facts['cpu']} ({facts.get('cpu_model', '')}; {', '.join(facts['flags'])}), {facts['cores']} cores",
        "",
        f"torch {facts['versions']['torch']}, transformers {facts['versions']['transformers']}, commit "
        f"{facts['commit']}, {facts['date'][:10]}; {texts}; the best setting of each, in brackets.",
        "",
        "| engine, model | dtype | ms a text, batch 1 | texts a second | BLEU |",
        "|---|---|---|---|---|",
    ]
    kinds = sorted({(each.get("beams", 1), each["engine"], each["policy"], each["dtype"]) for each in results})
    for beams, engine, policy, dtype in kinds:
        wanted = {"engine": engine, "policy": policy, "dtype": dtype, "beams": beams}
        fast, many = best(results, "latency", **wanted), best(results, "throughput", **wanted)
        cells = [
            f"{each['value']:.{digits}f} ({name_of(each)})" if each else "" for each, digits in ((fast, 2), (many, 0))
        ]
        name = f"{engine} `{policy}`" + (f", {beams} beams" if beams > 1 else "")
        rows.append(f"| {name} | {dtype} | {cells[0]} | {cells[1]} | {(fast or many or {}).get('bleu')} |")
    against = "; ".join(
        f"{task}: " + ", ".join(f"{ratio:.2f} × {peer}" for peer, ratio in line[task].items())
        for task in ("latency", "throughput")
        if line[task]
    )
    alone, searched = (
        ", ".join(f"{task} {ratio:.2f} ×" for task, ratio in line.get(name, {}).items())
        for name in ("large_alone", "beams")
    )
    rows += [
        "",
        f"bild int8 within {MAX_BLEU_LOSS} BLEU of its large model, {against}. Large model alone, int8: {alone}."
        + (f" The same with {BEAMS} beams: {searched}." if searched else ""),
    ]
    return "\n".join(rows)
