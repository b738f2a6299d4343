"""What benchmarks/chat_peers.py measured: a table, and a file of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import describe, slug

RESULTS = Path(__file__).resolve().parent / "results"


def print_rows(table: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str]) -> None:
    """The rows as a Markdown table, the fastest first, and what could not be run."""
    print("| engine | tokens a second | tokens | same text as our large model |\n|---|---|---|---|")
    for name in sorted(table, key=lambda each: -table[each]["tokens_per_second"]):
        row = table[name]
        print(f"| `{name}` | {row['tokens_per_second']:.1f} | {row['tokens']} | {row['same_as_large']:.0%} |")
    for name, why in failed.items():
        print(f"`{name}` was not run: {why}")


def keep(table: Mapping[str, Any], line: Mapping[str, Any], details: Mapping[str, Any]) -> Path:
    """Write the figures with machine and versions to ``benchmarks/results/PROCESSOR/chat-peers.json``."""
    machine = describe()
    file = RESULTS / slug(machine) / "chat-peers.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    values = {"machine": machine, **line, "rows": table, "details": details}
    file.write_text(json.dumps(values, indent=1, default=str) + "\n", encoding="utf-8")
    return file
