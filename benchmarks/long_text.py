"""What a long text costs outside the forward passes: streaming it, looking for stop strings in it.

python benchmarks/long_text.py            # 500, 1,000, 2,000 and 4,000 tokens, two stop strings
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from statistics import median
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from bild import BigLittleDecoder
from bild.generation.pair import bundled_pair
from bild.models import load_tokenizer

LENGTHS = (500, 1000, 2000, 4000)
STOPS = ["@@never@@", "。\n\n###"]


class Timed(LlamaForCausalLM):
    """Counts the seconds of its own passes."""

    seconds = 0.0

    def forward(self, *args: Any, **options: Any) -> Any:
        """As that of Llama."""
        start = time.perf_counter()
        try:
            return super().forward(*args, **options)
        finally:
            self.seconds += time.perf_counter() - start


def network(tokenizer: PreTrainedTokenizerBase, seed: int) -> Timed:
    """One layer of random weights: passes cost next to nothing."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_attention_heads=1, num_hidden_layers=1,
        max_position_embeddings=8192, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    return Timed(config).eval()


def outside(decoder: BigLittleDecoder, length: int, policy: str, stops: list[str]) -> float:
    """Seconds of a stream outside the passes of both models."""
    networks: list[Any] = [decoder.large.network, decoder.small.network]
    for each in networks:
        each.seconds = 0.0
    options = {"stop_strings": stops} if stops else {}
    start = time.perf_counter()
    stream = decoder.stream(
        [5, 6, 7], policy, max_new_tokens=length, do_sample=True, temperature=5.0, seed=1, **options
    )
    written = "".join(stream)
    elapsed = time.perf_counter() - start
    assert stream.result is not None and len(stream.result.token_ids) == length and written == stream.result.text
    return elapsed - sum(each.seconds for each in networks)


def main() -> None:
    """Print a line a length, and everything as one JSON line at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="large", help="a preset; large asks each token once")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(bundled_pair() / "large")
    assert tokenizer is not None
    decoder = BigLittleDecoder(network(tokenizer, 1), network(tokenizer, 2), tokenizer)
    outside(decoder, 100, arguments.policy, STOPS)
    rows = []
    for length in LENGTHS:
        with_stops, without = (
            median(outside(decoder, length, arguments.policy, stops) for _ in range(arguments.repeats))
            for stops in (STOPS, [])
        )
        rows.append({"tokens": length, "with_stops_s": with_stops, "without_s": without})
        each = [value / length * 1e6 for value in (with_stops, without)]
        print(f"{length:5} tokens: {with_stops:6.3f} s, {each[0]:4.0f} µs a token; without stop strings {each[1]:4.0f}")
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps({"rows": rows, "policy": arguments.policy, "stop_strings": STOPS, "versions": versions}))


if __name__ == "__main__":
    main()
