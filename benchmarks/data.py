"""Data files of the benchmarks: JSON lines with `source` and `target`, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def read(path: Path, limit: int | None = None) -> list[dict[str, str]]:
    """The first `limit` examples of a file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        examples = [json.loads(line) for line in lines]
    return examples[:limit]
