"""How much of a run is not a forward pass: policies, bookkeeping, cache surgery.

    python benchmarks/overhead.py [--pair PAIR] [--input FILE] [--repeat 5]

Times every forward of both networks (encoders included) inside whole `generate` calls; what is left is
ours. Texts are decoded before the clock starts and detokenised after it stops in neither figure's favour:
both stay inside the run.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from bild import BigLittleDecoder

DEMO = Path(__file__).resolve().parents[1] / "docs" / "demo.txt"


def main() -> None:
    """Print a line a policy, then everything as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default=None)
    parser.add_argument("--input", type=Path, default=DEMO)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeat", type=int, default=15)
    args = parser.parse_args()
    texts = args.input.read_text(encoding="utf-8").splitlines()
    decoder = BigLittleDecoder.from_pretrained(args.pair, dtype=args.dtype, runtime="eager")
    clock = ForwardClock(decoder)
    shares = {}
    for policy in ("bild", "exact", "large", "small"):
        runs = [clock.run(texts, policy) for _ in range(args.repeat + 2)][2:]
        shares[policy] = statistics.median(runs)
        spread = f"{min(runs):.1%} to {max(runs):.1%}"
        print(f"{policy:6} {shares[policy]:6.1%} of the run is not a forward pass ({spread}, {len(runs)} runs)")
    print(json.dumps({"overhead": shares, "dtype": str(decoder.large.dtype), "machine": platform.processor(),
                      "threads": torch.get_num_threads(), "torch": torch.__version__,
                      "transformers": transformers.__version__}))  # fmt: skip


class ForwardClock:
    """Adds up the time spent in the networks' forward passes."""

    def __init__(self, decoder: BigLittleDecoder) -> None:
        self.decoder, self.inside = decoder, 0.0
        for model in (decoder.large, decoder.small):
            # The modules it reads with, which share the network's weights.
            model.modules.forward = self._timed(model.modules.forward)
            if model.is_encoder_decoder:
                encoder = model.modules.get_encoder()
                encoder.forward = self._timed(encoder.forward)

    def _timed(self, forward):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            output = forward(*args, **kwargs)
            if self.decoder.large.device.type == "cuda":
                torch.cuda.synchronize()
            self.inside += time.perf_counter() - start
            return output

        return timed

    def run(self, texts: list[str], policy: str) -> float:
        """Share of one run that is outside the forward passes."""
        self.inside = 0.0
        start = time.perf_counter()
        self.decoder.generate(texts, policy)
        return 1 - self.inside / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
