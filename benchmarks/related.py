"""What related systems do on the bundled pair, in passes and not in seconds: ``python benchmarks/related.py``.

Counts are the same on every machine. Forty sentences that nobody tuned on, greedy, float32; a pass of the middle model
is one of the large model's first four layers where it says exit:4. The counts of the n-grams are made of other
sentences' translations by the small model: the half that is not decoded.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bild import BigLittleDecoder, Stats
from bild.training import count_ngrams

SENTENCES = Path(__file__).parents[1] / "tests" / "data" / "sentences.txt"
METHODS: list[tuple[str, dict[str, object], str, str | None]] = [
    ("large alone", {}, "large", None),
    ("small → large", {}, "exact", None),
    ("small → large", {}, "bild", None),
    ("n-grams → large", {}, "exact", "ngram:shortest=1"),
    ("backoff → large", {}, "exact:fallback_threshold=0.2", "backoff:file={counts}"),
    ("bandit of n-grams and small, by speed", {}, "exact", "bandit:reward=speed:ngram,small"),
    ("small → exit:4 → large", {"middle": "exit:4"}, "exact", None),
    ("n-grams → small → large", {"middle": "small", "drafter": "ngram:shortest=1"}, "exact", None),
    ("backoff → small → large", {"middle": "small", "drafter": "backoff:file={counts}"}, "exact", None),
    (
        "PSD_A, n-grams → small → large",
        {"middle": "small", "drafter": "ngram:shortest=1"},
        "pyramid:qualifier=exact_match",
        None,
    ),
    ("PSD_F, n-grams → small → large", {"middle": "small", "drafter": "ngram:shortest=1"}, "pyramid", None),
    ("AdaSD, version 1", {}, "adasd:version=1", None),
    ("AdaSD, version 2", {}, "adasd:version=2", None),
    ("our adaptive rules", {}, "adaptive", None),
]


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--texts", type=int, default=20, help="sentences to decode; n-grams are counted in the rest")
    count = arguments.parse_args().texts
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    texts, others = sentences[:count], sentences[count:]
    pair = BigLittleDecoder.from_pretrained(dtype="float32", runtime="eager")
    alone = [result.token_ids for result in pair.generate(texts, "large")]
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        count_ngrams(pair, others).save(counts)
        print("| system | policy | large passes | middle | small | tokens a large pass | large's own text |")
        print("|---|---|---|---|---|---|---|")
        for name, given, policy, drafter in METHODS:
            options = {key: str(value).format(counts=counts) for key, value in given.items()}
            decoder = pair
            if options:
                decoder = BigLittleDecoder(
                    pair.large.network, pair.small.network, pair.tokenizer, small_tokenizer=pair.tokenizer, **options
                )
            chosen = None if drafter is None else drafter.format(counts=counts)
            results = decoder.generate(texts, policy, drafter=chosen)
            stats = Stats.total(result.stats for result in results)
            same = sum(result.token_ids == own for result, own in zip(results, alone, strict=True))
            steps = stats.num_steps_by_model
            cells = [f"{steps.get(side, 0) / len(texts):.1f}" for side in ("large", "middle", "small")]
            passes = f"{stats.num_tokens / max(1, stats.num_large_steps):.2f}"
            print(f"| {name} | `{policy}` | {' | '.join(cells)} | {passes} | {same} of {len(texts)} |")


if __name__ == "__main__":
    main()
