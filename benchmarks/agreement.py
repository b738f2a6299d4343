"""Whether `exact` is transformers' own greedy text, token for token, and batches change nothing.

python benchmarks/agreement.py --data A/dev.jsonl.gz [--limit 200] [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bild import BigLittleDecoder, Stats
from bild.evaluation import read_examples


def main() -> None:
    """Compare and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--pair", default=None)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    decoder = BigLittleDecoder.from_pretrained(args.pair, dtype=args.dtype)
    sources = [example.source for example in read_examples(str(args.data), limit=args.limit).examples]
    results = decoder.generate(sources, "exact")
    batched = decoder.generate(sources, "exact", batch_size=16)
    equal = sum(result.token_ids == greedy(decoder, text) for result, text in zip(results, sources, strict=True))
    same = sum(one.token_ids == other.token_ids for one, other in zip(results, batched, strict=True))
    total = Stats.total(result.stats for result in results)
    print(f"{equal} of {len(sources)} texts are transformers' greedy, {same} the same in batches of 16, {args.dtype}")
    print(json.dumps({"sentences": len(sources), "equal": equal, "batched_equal": same, **total.to_dict()}))


def greedy(decoder: BigLittleDecoder, text: str) -> list[int]:
    """The large model's text by transformers' own generate, without the decoder start."""
    inputs = decoder.tokenizer(text, return_tensors="pt").to(decoder.large.device)
    return decoder.large.network.generate(**inputs, do_sample=False, num_beams=1)[0, 1:].tolist()


if __name__ == "__main__":
    main()
