"""A process that decodes for benchmarks/engines.py: bild, or CTranslate2 in its own environment, told line by line.

    python engines_child.py bild|ctranslate2 SETTINGS

Reads ``{"task": "latency" | "throughput", …}`` a line and answers ``{"seconds": […], "texts": […]}``. Knows nothing of
bild where CTranslate2 runs, whose packages are elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
Answer = Callable[[list[str], Settings], list[str]]
"""From texts and what is asked for to what they become, in their order."""


def main() -> None:
    """Load, say so, answer."""
    engine, settings = sys.argv[1], json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What engines print is not for who asks.
    os.dup2(2, 1)
    decode = {"bild": load_bild, "ctranslate2": load_ctranslate2}[engine](settings)
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        texts = settings["texts"][: asked["limit"]]
        decode(texts[: asked["warm_up"]], asked)
        one_by_one = asked["task"] == "latency"
        seconds, written = [], []
        for part in [[text] for text in texts] if one_by_one else [texts]:
            start = time.perf_counter()
            written += decode(part, asked)
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds, "texts": written}), file=out, flush=True)


def load_bild(settings: Settings) -> Answer:
    """The pair, for so many threads in each lane."""
    import torch

    torch.set_num_threads(settings["threads"])
    import bild

    decoder = bild.BigLittleDecoder.from_pretrained(settings["pair"], runtime="static", dtype=settings["dtype"])

    def decode(texts: list[str], asked: Settings) -> list[str]:
        many = {"batch_size": asked["batch"], "lanes": settings["lanes"]} if asked["task"] == "throughput" else {}
        # CTranslate2's searches end with as many finished hypotheses as beams.
        search = {"num_beams": asked["beams"], "early_stopping": True} if "beams" in asked else {}
        options = {"max_new_tokens": settings["max_new_tokens"], **search, **many}
        return [result.text for result in decoder.generate(texts, asked["policy"], **options)]

    return decode


def load_ctranslate2(settings: Settings) -> Answer:
    """One model in a dtype; each lane is a translator of CTranslate2's own."""
    import ctranslate2
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(settings["checkpoint"]) / "tokenizer.json"))
    # What a checkpoint's file asks for would pad all texts to the longest, and CTranslate2 would read the padding.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    loaded: list[Any] = []

    def load() -> None:
        threads = {"inter_threads": settings["lanes"], "intra_threads": settings["threads"]}
        loaded.append(
            ctranslate2.Translator(settings["model"], device="cpu", compute_type=settings["dtype"], **threads)
        )

    # In a thread that ends: its team of OpenMP threads would get into the way of those that decode.
    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    (translator,) = loaded

    def decode(texts: list[str], asked: Settings) -> list[str]:
        tokens = [encoding.tokens for encoding in tokenizer.encode_batch(texts)]
        options = {"beam_size": asked.get("beams", 1), "max_decoding_length": settings["max_new_tokens"]}
        results = translator.translate_batch(
            tokens, max_batch_size=asked.get("batch", 1), max_input_length=0, **options
        )
        ids = [[tokenizer.token_to_id(token) for token in result.hypotheses[0]] for result in results]
        return list(tokenizer.decode_batch(ids))

    return decode


if __name__ == "__main__":
    main()
