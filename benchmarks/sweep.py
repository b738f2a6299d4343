"""Quality and counts of many BiLD policies on dev sets, without timing: where to look for thresholds.

    python benchmarks/sweep.py --data A/dev.jsonl.gz --data B/dev.jsonl.gz --limit 500 --out sweep.jsonl

Writes one JSON line a policy and data file and skips what is already there, so a killed run resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import sacrebleu
import torch
from data import read

from bild import BigLittleDecoder, Policy, Stats


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pair", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fallback", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument("--rollback", type=float, nargs="+", default=[0.7, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--verify-end", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    decoder = BigLittleDecoder.from_pretrained(args.pair, dtype=args.dtype)
    done = set()
    if args.out.exists():
        done = {(row["data"], row["policy"]) for row in map(json.loads, args.out.read_text().splitlines())}
    policies = {"large": Policy.large(), "small": Policy.small()}
    for end, fallback, rollback in itertools.product(args.verify_end, args.fallback, args.rollback):
        policies[f"bild {fallback:g} {rollback:g} {end}"] = Policy.bild(
            fallback_threshold=fallback, rollback_threshold=rollback, verify_end=bool(end)
        )
    for (name, policy), path in itertools.product(policies.items(), args.data):
        if (str(path), name) in done:
            continue
        examples = read(path, args.limit)
        results = decoder.generate([example["source"] for example in examples], policy)
        bleu = sacrebleu.corpus_bleu([r.text for r in results], [[example["target"] for example in examples]])
        row = {"data": str(path), "policy": name, "bleu": bleu.score, **Stats.total(r.stats for r in results).to_dict()}
        with args.out.open("a") as out:
            out.write(json.dumps(row) + "\n")
        print(path.parent.name, name, f"{bleu.score:.2f}", flush=True)


if __name__ == "__main__":
    main()
