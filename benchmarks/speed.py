"""BiLD beside the large model alone, batch 1, sentence by sentence in turn: speedup and BLEU with intervals.

    python benchmarks/speed.py --data A/test.jsonl.gz B/test.jsonl.gz [--limit 300] [--policy bild]
    python benchmarks/speed.py --data A/test.jsonl.gz@0.2,2 B/test.jsonl.gz@0.4,2,0.6

`@FALLBACK,ROLLBACK[,VERIFY_END]` gives a file thresholds of its own, as the paper does; otherwise the pair's are used.
Each sentence is decoded by both methods, who goes first alternates. Speedup = time of large alone / time of
the policy, summed over the sentences; its interval and that of the BLEU difference are 95 % paired bootstrap
intervals over sentences. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
from pathlib import Path

import sacrebleu
import torch
import transformers
from data import read

from bild import BigLittleDecoder, Policy, Result, Stats

RESAMPLES = 1000
SIGNATURE = f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{sacrebleu.__version__}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--pair", default=None)
    parser.add_argument("--policy", default="bild", choices=["bild", "exact"])
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    decoder = BigLittleDecoder.from_pretrained(args.pair, dtype=args.dtype)
    everything: list[Pair] = []
    report: dict[str, object] = {}
    for given in args.data:
        file, _, thresholds = given.partition("@")
        policy = decoder.resolve_policy(args.policy)
        if thresholds:
            fallback, rollback, *end = map(float, thresholds.split(","))
            verify_end = end[0] if end else False
            policy = Policy.bild(fallback_threshold=fallback, rollback_threshold=rollback, verify_end=verify_end)
        pairs = measure(decoder, policy, read(Path(file), args.limit))
        name = Path(file).parent.name
        report[name] = {"policy": policy.to_dict(), **summarise(name, pairs)}
        everything += pairs
    if len(args.data) > 1:
        report["all"] = summarise("all", everything)
    print(json.dumps({"results": report, "dtype": args.dtype,
                      "bleu_signature": SIGNATURE,
                      "machine": platform.machine(), "threads": torch.get_num_threads(),
                      "torch": torch.__version__, "transformers": transformers.__version__}))  # fmt: skip


class Pair:
    """One sentence decoded both ways."""

    def __init__(self, target: str, ours: Result, large: Result) -> None:
        self.target, self.ours, self.large = target, ours, large


def measure(decoder: BigLittleDecoder, policy: Policy, examples: list[dict[str, str]]) -> list[Pair]:
    """Decode every example by both methods, in turn."""
    for example in examples[:10]:
        for method in (policy, "large"):
            decoder.generate(example["source"], method)
    pairs = []
    for index, example in enumerate(examples):
        methods: dict[str, Policy | str] = {"ours": policy, "large": "large"}
        order = list(methods) if index % 2 else list(reversed(methods))
        results = {name: decoder.generate(example["source"], methods[name])[0] for name in order}
        pairs.append(Pair(example["target"], **results))
    return pairs


def summarise(name: str, pairs: list[Pair]) -> dict[str, object]:
    """Speedup, BLEU and counts of a set."""
    statistics = [_sentence_statistics(pair) for pair in pairs]
    draws = random.Random(0)
    resampled = [_scores([draws.choice(statistics) for _ in statistics]) for _ in range(RESAMPLES)]
    speedup, ours, large = _scores(statistics)
    low, high = (int(RESAMPLES * share) for share in (0.025, 0.975))
    speedups = sorted(score[0] for score in resampled)
    differences = sorted(score[1] - score[2] for score in resampled)
    stats = Stats.total(pair.ours.stats for pair in pairs)
    same = sum(pair.ours.token_ids == pair.large.token_ids for pair in pairs)
    print(
        f"{name:16} {len(pairs)} sentences · speedup {speedup:.2f} [{speedups[low]:.2f}, {speedups[high]:.2f}] · "
        f"BLEU {ours:.2f}, large alone {large:.2f}, difference {ours - large:+.2f} "
        f"[{differences[low]:+.2f}, {differences[high]:+.2f}] · large share {stats.large_share:.0%} · "
        f"acceptance {stats.acceptance_rate:.0%} · rollback rate {stats.rollback_rate:.0%} · same text {same}"
    )
    return {
        "sentences": len(pairs),
        "speedup": speedup,
        "speedup_interval": [speedups[low], speedups[high]],
        "bleu": ours,
        "bleu_large": large,
        "bleu_difference_interval": [differences[low], differences[high]],
        "ms_per_token": [1e3 * sum(r.total_s for r in side) / sum(len(r.token_ids) for r in side)
                         for side in ([p.ours for p in pairs], [p.large for p in pairs])],
        "stats": stats.to_dict(),
    }  # fmt: skip


def _sentence_statistics(pair: Pair) -> tuple[float, float, list[int], list[int]]:
    metric = sacrebleu.BLEU()
    counts = [metric._extract_corpus_statistics([side.text], [[pair.target]])[0] for side in (pair.ours, pair.large)]
    return pair.ours.total_s, pair.large.total_s, counts[0], counts[1]


def _scores(statistics: list[tuple[float, float, list[int], list[int]]]) -> tuple[float, float, float]:
    metric = sacrebleu.BLEU()
    ours, large = (
        metric._compute_score_from_stats(
            [sum(column) for column in zip(*(row[side] for row in statistics), strict=True)]
        )
        for side in (2, 3)
    )
    return sum(row[1] for row in statistics) / sum(row[0] for row in statistics), ours.score, large.score


if __name__ == "__main__":
    main()
