"""Whether lossless policies write transformers' own greedy text from a GGUF file, token for token.

    python benchmarks/gguf_exact.py --large chat.gguf --small exit:8 --prompts 3 --prompt-tokens 300 --tokens 300

Prompts are pieces of this repository's pages, each of so many tokens, so that prompt and text together go beyond the
window of models that have one. In float32, where near ties are rare: a difference is shown with the gap between the two
likeliest tokens at its place. The last line is JSON: texts that are the same / texts, by drafter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from bild import BigLittleDecoder

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))


def main() -> None:
    """Compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", required=True, help="GGUF file, or any other checkpoint")
    parser.add_argument("--small", nargs="*", default=[], help="small models, as exit:8; n-grams are always tried")
    parser.add_argument("--prompts", type=int, default=3, help="pieces of text, 1…")
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=300, help="new tokens of each, 1…")
    parser.add_argument("--runtime", default="eager")
    args = parser.parse_args()
    decoder = BigLittleDecoder.from_pretrained(large=args.large, drafter="ngram", dtype="float32", runtime=args.runtime)
    prompts = pieces(decoder, args.prompt_tokens)[: args.prompts]
    expected = [greedy(decoder, ids, args.tokens) for ids in prompts]
    line: dict[str, Any] = {"window": getattr(decoder.large.config.get_text_config(), "sliding_window", None)}
    line["ngram"] = compare(decoder, "ngram", prompts, expected, args.tokens)
    for small in args.small:
        pair = BigLittleDecoder.from_pretrained(large=args.large, small=small, dtype="float32", runtime=args.runtime)
        line[small] = compare(pair, small, prompts, expected, args.tokens)
    print(json.dumps(line))


def pieces(decoder: BigLittleDecoder, length: int) -> list[list[int]]:
    """The pages in pieces of so many tokens, behind the token that begins a text where the checkpoint has one."""
    assert decoder.tokenizer is not None
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    start = decoder.tokenizer("").input_ids
    ids = decoder.tokenizer(text).input_ids[len(start) :]
    inner = length - len(start)
    return [[*start, *ids[at : at + inner]] for at in range(0, len(ids) - inner, 7 * inner)]


def greedy(decoder: BigLittleDecoder, ids: list[int], tokens: int) -> list[int]:
    """New tokens of transformers' generate()."""
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        written = decoder.large.network.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=tokens
        )
    new: list[int] = written[0, len(ids) :].tolist()
    return new


def compare(
    decoder: BigLittleDecoder, name: str, prompts: list[list[int]], expected: list[list[int]], tokens: int
) -> str:
    """How many texts are the same; differences are printed."""
    same = 0
    for number, (ids, wanted) in enumerate(zip(prompts, expected, strict=True)):
        (result,) = decoder.generate([ids], "exact", max_new_tokens=tokens)
        same += result.token_ids == wanted
        drafted = result.stats.mean_acceptance_length
        print(f"{name}, prompt {number}: {len(ids)} + {len(wanted)} tokens, accepted length {drafted:.2f}", flush=True)
        if result.token_ids != wanted:
            print(f"  differs: {difference(decoder, ids, result.token_ids, wanted)}")
    return f"{same}/{len(prompts)}"


def difference(decoder: BigLittleDecoder, ids: list[int], own: list[int], wanted: list[int]) -> str:
    """Where two texts part, and how near the two likeliest tokens are there."""
    at = next((i for i, (a, b) in enumerate(zip(own, wanted, strict=False)) if a != b), min(len(own), len(wanted)))
    with torch.inference_mode():
        scores = decoder.large.network(torch.tensor([[*ids, *wanted[:at]]]), use_cache=False).logits[0, -1]
    first, second = scores.topk(2).values.tolist()
    return f"at token {at}, where the likeliest is {first - second:.2g} above the next"


if __name__ == "__main__":
    main()
