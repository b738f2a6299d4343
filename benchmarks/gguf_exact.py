"""Whether lossless policies write transformers' own greedy text from a GGUF file, token for token.

    python benchmarks/gguf_exact.py --large chat.gguf --small exit:8 --prompts 100 --batch-size 10

Prompts are pieces of this repository's pages, spread over them, each of so many tokens, so that prompt and text
together go beyond the window of models that have one. In float32, where near ties are rare: a difference is shown with
the gap between the two likeliest tokens at its place. The last line is JSON: how many texts are the same, by drafter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from bild import BigLittleDecoder

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))


def main() -> None:
    """Compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", required=True, help="GGUF file, or any other checkpoint")
    parser.add_argument("--small", nargs="*", default=[], help="small models, as exit:8; n-grams are always tried")
    parser.add_argument("--prompts", type=int, default=3, help="pieces of text, 1…")
    parser.add_argument("--skip", type=int, default=0, help="so many of them, done in an earlier run")
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=300, help="new tokens of each, 1…")
    parser.add_argument("--batch-size", type=int, default=1, help="texts written together, by either")
    parser.add_argument("--policy", default="exact", help="a lossless one; exact:max_draft_tokens=4 reads less")
    parser.add_argument("--runtime", default="eager")
    args = parser.parse_args()
    pairs = {"ngram": load(args, drafter="ngram"), **{small: load(args, small=small) for small in args.small}}
    decoder = pairs["ngram"]
    prompts = pieces(decoder, args.prompt_tokens, args.prompts)
    same = dict.fromkeys(pairs, 0)
    for first in range(args.skip, len(prompts), args.batch_size):
        together = prompts[first : first + args.batch_size]
        wanted = greedy(decoder, together, args.tokens)
        for name, pair in pairs.items():
            same[name] += compare(pair, args.policy, name, first, together, wanted)
    window = getattr(decoder.large.config.get_text_config(), "sliding_window", None)
    print(json.dumps({"texts": len(prompts) - args.skip, "window": window, "same": same}))


def load(args: argparse.Namespace, **named: str) -> BigLittleDecoder:
    """A pair of the large model and what drafts for it."""
    return BigLittleDecoder.from_pretrained(large=args.large, **named, dtype="float32", runtime=args.runtime)


def pieces(decoder: BigLittleDecoder, length: int, count: int) -> list[list[int]]:
    """Pieces of the pages, each of so many tokens, behind the token that begins a text where the checkpoint has one."""
    assert decoder.tokenizer is not None
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    start = decoder.tokenizer("").input_ids
    ids = decoder.tokenizer(text).input_ids[len(start) :]
    inner = length - len(start)
    if count * inner > len(ids):
        raise SystemExit(f"the pages have {len(ids) // inner} pieces of {length} tokens; ask for fewer with --prompts")
    return [[*start, *ids[at : at + inner]] for at in range(0, len(ids) - inner + 1, len(ids) // count)][:count]


def greedy(decoder: BigLittleDecoder, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """New tokens of transformers' generate(), up to the one that ends a text."""
    ids, network = torch.tensor(prompts), decoder.large.network
    with torch.inference_mode():
        written = network.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    ends = network.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    new: list[list[int]] = written[:, ids.shape[1] :].tolist()
    counts = [next((at + 1 for at, token in enumerate(row) if token in ends), len(row)) for row in new]
    return [row[:count] for row, count in zip(new, counts, strict=True)]


def compare(
    decoder: BigLittleDecoder,
    policy: str,
    name: str,
    first: int,
    prompts: list[list[int]],
    wanted: list[list[int]],
) -> int:
    """How many texts are the same; says so of each."""
    longest = max(map(len, wanted))
    results = decoder.generate(prompts, policy, lossless=True, max_new_tokens=longest, batch_size=len(prompts))
    same = 0
    for number, (ids, result, text) in enumerate(zip(prompts, results, wanted, strict=True), first):
        is_same = result.token_ids == text
        same += is_same
        says = "the same" if is_same else difference(decoder, ids, result.token_ids, text)
        length = result.stats.mean_acceptance_length
        print(
            f"prompt {number}, {name}: {len(ids)} + {len(text)} tokens, accepted length {length:.2f}, {says}",
            flush=True,
        )
    return same


def difference(decoder: BigLittleDecoder, ids: list[int], own: list[int], wanted: list[int]) -> str:
    """Where two texts part, and how near the two likeliest tokens are there."""
    at = next((i for i, (a, b) in enumerate(zip(own, wanted, strict=False)) if a != b), min(len(own), len(wanted)))
    with torch.inference_mode():
        scores = decoder.large.network(torch.tensor([[*ids, *wanted[:at]]]), use_cache=False).logits[0, -1]
    first, second = scores.topk(2).values.tolist()
    return f"differs at token {at}, where the likeliest is {first - second:.2g} above the next"


if __name__ == "__main__":
    main()
