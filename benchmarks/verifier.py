"""What crosses the network between a device and its verifier, in bytes: ``python benchmarks/verifier.py``.

A verify-server of the bundled large model on loopback, and a device with the small one: requests and bytes of bodies a
token, and whether the texts are those of the pair on one machine. Counts are the same on every machine.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

from bild import BigLittleDecoder
from bild.edge.verification import Limits
from bild.serving.server import Server, listen
from bild.serving.settings import Settings
from bild.serving.verifying import VerifyingService, build_verifying_app

SENTENCES = Path(__file__).parents[1] / "tests" / "data" / "sentences.txt"
DRAWS: dict[str, Any] = {"do_sample": True, "seed": 1}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("bild", {}),
    ("bild:metric=margin", {}),
    ("exact", {}),
    ("exact", DRAWS),
    ("speculative_sampling", DRAWS),
    ("speculative_sampling", DRAWS | {"top_p": 0.9}),
    ("large", {}),
]


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--texts", type=int, default=20)
    texts = SENTENCES.read_text(encoding="utf-8").splitlines()[: arguments.parse_args().texts]
    here = BigLittleDecoder.from_pretrained(dtype="float32", runtime="eager")
    url = _serve(BigLittleDecoder(here.large.network, tokenizer=here.tokenizer, drafter="ngram"))
    far = BigLittleDecoder.from_pretrained(dtype="float32", runtime="eager", verifier=url)
    print("| policy | drawn | requests a text | tokens a request | bytes a token up | down | texts of one machine |")
    print("|---|---|---|---|---|---|---|")
    for policy, options in METHODS:
        before = vars(far.traffic).copy()
        ours, theirs = far.generate(texts, policy, **options), here.generate(texts, policy, **options)
        used = {name: value - before[name] for name, value in vars(far.traffic).items()}
        tokens = sum(len(result.token_ids) for result in ours)
        same = sum(one.token_ids == other.token_ids for one, other in zip(ours, theirs, strict=True))
        cells = [
            f"`{policy}`",
            ", ".join(f"{name}={value}" for name, value in options.items() if name not in ("do_sample", "seed"))
            or ("yes" if options else "no"),
            f"{used['requests'] / len(texts):.1f}",
            f"{tokens / used['requests']:.2f}",
            f"{used['bytes_up'] / tokens:.0f}",
            f"{used['bytes_down'] / tokens:.0f}",
            f"{same} of {len(texts)}",
        ]
        print(f"| {' | '.join(cells)} |")


def _serve(decoder: BigLittleDecoder) -> str:
    service = VerifyingService(decoder, Limits(), Settings())
    service.engine.start()
    listening = listen("127.0.0.1", 0)
    server = Server(service, 0, build_verifying_app(service))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


if __name__ == "__main__":
    main()
