"""Biased re-translation on the bundled pair: ``python benchmarks/retranslate.py test.jsonl.gz --limit 40``.

Sources are revealed word by word. For every β: passes of the large model and seconds a source, flicker (normalised
erasure) with and without a mask, and BLEU of the last translation; "anew" translates each time without a draft.
"""

from __future__ import annotations

import argparse
import time

from bild import BigLittleDecoder
from bild.data import quality_metric, read_examples
from bild.generation.retranslate import Retranslator, flicker, retranslate, revealed, visible

BETAS, MASKS = (0.0, 0.1, 0.2, 0.3), (0, 3)


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("data", help="examples with source and target, as for bild evaluate")
    arguments.add_argument("--limit", type=int, default=40, help="sources")
    given = arguments.parse_args()
    examples, metric = read_examples(given.data, limit=given.limit).examples, quality_metric("bleu")
    pair = BigLittleDecoder.from_pretrained(dtype="float32", runtime="eager")
    print("| β | large passes a source | seconds a source | flicker | flicker, 3 hidden | BLEU |")
    print("|---|---|---|---|---|---|")
    start, passes = time.perf_counter(), 0
    for example in examples:
        passes += sum(pair.generate(text, "large")[0].stats.num_large_steps for text in revealed(example.source))
    seconds = (time.perf_counter() - start) / len(examples)
    print(f"| anew | {passes / len(examples):.1f} | {seconds:.2f} | | | |", flush=True)
    for beta in BETAS:
        runs = [retranslate(pair, revealed(each.source), beta=beta, mask=0) for each in examples]
        last = [run.revisions[-1].text for run in runs]
        passes, spent = sum(run.num_large_steps for run in runs), sum(run.seconds for run in runs)
        flickers = [sum(masked(run, mask) for run in runs) / len(runs) for mask in MASKS]
        counts = [metric.statistics(text, e.references) for text, e in zip(last, examples, strict=True)]
        bleu = metric.score([sum(each) for each in zip(*counts, strict=True)])
        cells = [
            f"{passes / len(runs):.1f}",
            *(f"{each:.2f}" for each in (spent / len(runs), *flickers)),
            f"{bleu:.1f}",
        ]
        print(f"| {beta} | {' | '.join(cells)} |", flush=True)


def masked(run: Retranslator, mask: int) -> float:
    """Flicker if so many tokens had been hidden: a mask changes what is shown, not what is written."""
    results = [revision.result for revision in run.revisions]
    return flicker([*(visible(each, mask) for each in results[:-1]), visible(results[-1], 0, whole=True)])


if __name__ == "__main__":
    main()
