"""A corpus in batches: rows that end make room for the next text, against batches that wait for their last row.

    python benchmarks/refill.py --data multi30k/test.jsonl.gz --batch-size 8 --policy bild

Both ways decode the same sentences with the same pair, in turn; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

import bild
from bild.data import read_sets
from bild.machine import describe_machine, versions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSON lines with a source each")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--policy", default="bild")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    decoder = bild.BigLittleDecoder.from_pretrained(runtime="static", dtype=asked.dtype)
    ((_, examples),) = read_sets([asked.data], None, limit=asked.texts).items()
    texts = [example.source for example in examples.examples]
    size = asked.batch_size

    def fixed() -> list[str]:
        batches = (texts[at : at + size] for at in range(0, len(texts), size))
        return [r.text for batch in batches for r in decoder.generate(batch, asked.policy, batch_size=size)]

    def refilled() -> list[str]:
        return [result.text for result in decoder.generate_each(iter(texts), asked.policy, batch_size=size)]

    seconds: dict[str, list[float]] = {"fixed": [], "refilled": []}
    written = {}
    decoder.generate(texts[: 4 * size], asked.policy, batch_size=size)
    for _ in range(asked.repeats):
        for name, way in (("fixed", fixed), ("refilled", refilled)):
            start = time.perf_counter()
            written[name] = way()
            seconds[name].append(time.perf_counter() - start)
            print(f"{name}: {len(texts) / seconds[name][-1]:.1f} texts a second", file=sys.stderr, flush=True)
    same = sum(one == other for one, other in zip(*written.values(), strict=True))
    ratios = [one / other for one, other in zip(seconds["fixed"], seconds["refilled"], strict=True)]
    found = {
        "texts": len(texts),
        "batch_size": size,
        "policy": asked.policy,
        "dtype": decoder.dtype,
        "threads": asked.threads,
        "texts_per_second": {name: len(texts) / statistics.median(each) for name, each in seconds.items()},
        "refilled_is_times_as_fast": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "same_texts": same / len(texts),
        "machine": describe_machine(),
        "versions": versions(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
