"""A server under load whose clients come and go: nobody is lost, nothing hangs, nothing is left behind.

    python benchmarks/soak.py --data multi30k/test.jsonl.gz --requests 1000 --in-flight 64
    python benchmarks/soak.py --data … --pair my-pair --runtime static --dtype int8

Starts ``bild serve`` on the bundled pair (or --pair) and sends it requests of all kinds: one text and several, whole
and streamed, under every policy. One in ten vanishes at a random point: in the middle of its request, behind it, or in
the middle of the answer. Every text that comes back is compared with that of ``generate`` in this process. The last
line is JSON; the exit code is 1 if a request was lost or hung, a text differs (in float32), a gauge of the server is
not back at 0, or its memory has grown by more than --growth since the first fifth of the requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serve import served

import bild
from bild.data import read_sets

POLICIES = ("bild", "exact", "large", "small")
GAUGES = (
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_open",
    "num_tokens_waiting",
    "kv_cache_usage_perc",
)
WARM = 0.2
"""Share of the requests after which memory counts."""


@dataclass
class Soaked:
    """What became of the requests."""

    ends: Counter[str] = field(default_factory=Counter)
    """By how they ended: ``"done"``, ``"vanished"``, ``"lost"`` (refused or cut off), ``"hung"``."""
    different: int = 0
    """Texts that are not those of ``generate``."""
    texts: int = 0
    memory: list[int] = field(default_factory=list)
    """Bytes of the server, once every hundredth of the requests."""
    gauges: dict[str, float] = field(default_factory=dict)
    """What is left at the end."""

    @property
    def growth(self) -> float:
        """Share by which memory has grown since the server was warm: median of the last tenth / of a tenth then."""
        tenth = max(1, len(self.memory) // 10)
        warm = int(WARM * len(self.memory))
        then, now = (sorted(part)[len(part) // 2] for part in (self.memory[warm : warm + tenth], self.memory[-tenth:]))
        return now / then - 1

    def summary(self) -> dict[str, Any]:
        """All of it."""
        warm = self.memory[int(WARM * len(self.memory))]
        return {
            **{name: self.ends[name] for name in ("done", "vanished", "lost", "hung")},
            "texts": self.texts,
            "different": self.different,
            "gauges": self.gauges,
            "memory_mb": [round(each / 1e6, 1) for each in (warm, self.memory[-1])],
            "growth": round(self.growth, 4),
        }


@dataclass
class Soak:
    """Sends requests to a server.

    Args:
        url: of the server.
        expected: texts of ``generate``, by policy and source.
        options: fields of every request.
        vanish: share of the clients that vanish, 0…1.
        patience_s: after which a request hangs, in seconds.
        memory: bytes of the server.
        seed: of what is drawn.
    """

    url: str
    expected: Mapping[str, Mapping[str, str]]
    options: Mapping[str, Any]
    memory: Callable[[], int]
    vanish: float = 0.1
    patience_s: float = 300
    seed: int = 0
    found: Soaked = field(default_factory=Soaked)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.place = urlsplit(self.url)

    async def run(self, requests: int, in_flight: int) -> Soaked:
        """Send so many, so many at once."""
        left = iter(range(requests))

        async def client() -> None:
            for at in left:
                if at % max(1, requests // 100) == 0:
                    self.found.memory.append(self.memory())
                await self._one()

        await asyncio.gather(*[client() for _ in range(in_flight)])
        await self._settle()
        self.found.memory.append(self.memory())
        return self.found

    async def _one(self) -> None:
        try:
            async with asyncio.timeout(self.patience_s):
                self.found.ends[await self._ask()] += 1
        except TimeoutError:
            self.found.ends["hung"] += 1
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            print(f"lost: {type(error).__name__} {error}", file=sys.stderr)
            self.found.ends["lost"] += 1

    async def _ask(self) -> str:
        rng = self.rng
        policy, stream = rng.choice(list(self.expected)), rng.random() < 0.5
        sources = rng.sample(list(self.expected[policy]), rng.randint(1, 3))
        body = {**self.options, "prompt": sources, "policy": policy, "stream": stream}
        leaves = rng.random() < self.vanish
        reader, writer = await asyncio.open_connection(self.place.hostname, self.place.port)
        try:
            sent = request(json.dumps(body).encode())
            writer.write(sent[: rng.randrange(len(sent))] if leaves and rng.random() < 0.3 else sent)
            await writer.drain()
            if leaves:
                await self._leave(reader)
                return "vanished"
            answer = await reader.read()
        finally:
            if leaves and rng.random() < 0.5:
                # A reset in place of a polite end.
                writer.transport.abort()
            writer.close()
        self._compare([self.expected[policy][source] for source in sources], answer, stream)
        return "done"

    async def _leave(self, reader: asyncio.StreamReader) -> None:
        """Wait a while, or for a piece of the answer."""
        try:
            async with asyncio.timeout(self.rng.random() * 0.3):
                await reader.read(self.rng.randrange(1, 400))
        except TimeoutError:
            pass

    def _compare(self, expected: Sequence[str], answer: bytes, stream: bool) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0] + b" ":
            raise ValueError(answer[:300])
        texts = streamed(body, len(expected)) if stream else [each["text"] for each in json.loads(body)["choices"]]
        self.found.texts += len(expected)
        self.found.different += sum(one != other for one, other in zip(texts, expected, strict=True))

    async def _settle(self) -> None:
        """Wait until the server has noticed that everybody is gone."""
        end = time.monotonic() + 30
        while True:
            self.found.gauges = await self._gauges()
            if not any(self.found.gauges.values()) or time.monotonic() > end:
                return
            await asyncio.sleep(0.1)

    async def _gauges(self) -> dict[str, float]:
        reader, writer = await asyncio.open_connection(self.place.hostname, self.place.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        page = (await reader.read()).decode()
        writer.close()
        return {name: float(re.search(rf"^\w+:{name}{{.*?}} (\S+)$", page, re.M)[1]) for name in GAUGES}  # type: ignore[index]


def request(body: bytes) -> bytes:
    """A request for completions, over a connection of its own."""
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def streamed(body: bytes, count: int) -> list[str]:
    """The texts of a stream, by their index.

    Raises:
        ValueError: it does not end as a stream ends, or says that something went wrong.
    """
    # Pieces of a chunked answer: their sizes stand on lines of their own.
    lines = [line for line in body.decode().splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "data: [DONE]":
        raise ValueError(f"a stream that does not end: {lines[-1:]}")
    texts = [""] * count
    for line in lines[:-1]:
        event = json.loads(line[6:])
        if "error" in event:
            raise ValueError(line)
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def resident(process: int) -> int:
    """Bytes of memory a process holds (Linux)."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return 0 if found is None else 1024 * int(found[1])


def main() -> None:
    """Soak and print."""
    args = parse_arguments()
    ((_, examples),) = read_sets([args.data], None, limit=args.texts).items()
    sources = list(dict.fromkeys(example.source for example in examples.examples))
    loaded = {"runtime": args.runtime, "dtype": args.dtype}
    decoder = bild.BigLittleDecoder.from_pretrained(args.pair, **loaded)
    expected = {}
    for policy in POLICIES:
        results = decoder.generate(sources, policy, max_new_tokens=args.tokens)
        expected[policy] = dict(zip(sources, (result.text for result in results), strict=True))
    named = [] if args.pair is None else ["--pair", args.pair]
    options = [*named, *(f"--{name}={value}" for name, value in loaded.items()), f"--max-rows={args.max_rows}"]
    options.append(f"--lanes={args.lanes}")
    with served(options) as server:
        soak = Soak(server.url, expected, {"max_tokens": args.tokens}, lambda: resident(server.process), args.vanish)
        found = asyncio.run(soak.run(args.requests, args.in_flight))
    summary = found.summary() | {"requests": args.requests, "in_flight": args.in_flight, **loaded}
    print(json.dumps(summary))
    fails = found.ends["lost"] or found.ends["hung"] or any(found.gauges.values()) or found.growth > args.growth
    if fails or (found.different and decoder.dtype == "float32"):
        raise SystemExit(1)


def parse_arguments() -> argparse.Namespace:
    """What is to be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSON lines with a source each")
    parser.add_argument("--texts", type=int, default=64, help="different sources")
    parser.add_argument("--tokens", type=int, default=32, help="longest text")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--vanish", type=float, default=0.1, help="share of the clients that vanish")
    parser.add_argument("--growth", type=float, default=0.02, help="share by which memory may grow")
    parser.add_argument("--max-rows", type=int, default=4)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--pair", default=None)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--dtype", default="float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
