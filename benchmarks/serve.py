"""A server under load: requests a second and latencies, by policy and by clients that ask at once.

    python benchmarks/serve.py --data multi30k/test.jsonl.gz --texts 256 --clients 1 2 4 8 16 32
    python benchmarks/serve.py --data … --ctranslate2 FOLDER --ctranslate2-python VENV/bin/python
    python benchmarks/serve.py --data … --other libretranslate=http://127.0.0.1:5000/translate

Starts ``bild serve`` on the bundled pair (or --pair) and asks for the same texts with each policy, each client in turn
for its share, over a connection it keeps. Beside it, if named: CTranslate2 in int8 behind HTTP
(``benchmarks/ctranslate2_server.py``; FOLDER is what ``ct2-transformers-converter --model models/de-en/large
--quantization int8 --output_dir FOLDER`` makes), and any server that takes OpenAI's completions or LibreTranslate's
/translate. Each engine runs with every setting of its own (rows; threads and batch), all are asked in turn for several
rounds, and for each number of clients the setting that serves most counts, by its median round. What HTTP costs is
measured with one client against the same texts decoded in this process. Runs on the cores the clients run on too; the
last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import sacrebleu

import bild
from bild.data import read_sets
from bild.machine import describe_machine

TURN = 16
"""Texts that are decoded in this process before as many are over HTTP."""
LONGEST = 128
"""Most tokens of a text, for every engine alike; ``ctranslate2_server.py`` has the same."""


@dataclass
class Load:
    """What became of the texts of one run."""

    texts: list[str]
    milliseconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def summary(self, targets: Sequence[str]) -> dict[str, float]:
        """Requests a second, medians and 99th percentiles in ms, and BLEU of what came back."""
        found = {
            "rps": len(self.texts) / self.seconds,
            "ms_p50": statistics.median(self.milliseconds),
            "ms_p99": percentile(self.milliseconds, 0.99),
            "bleu": sacrebleu.corpus_bleu(self.texts, [list(targets)]).score,
        }
        if self.first:
            found |= {"ttft_p50": statistics.median(self.first), "ttft_p99": percentile(self.first, 0.99)}
        return {name: round(value, 3) for name, value in found.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Asker:
    """Asks a server over one connection.

    Args:
        url: of its API; ``/translate`` is asked as LibreTranslate is, everything else as OpenAI.
        policy: of a server of ours; None: of another.
    """

    def __init__(self, url: str, policy: str | None) -> None:
        self.place, self.policy = urlsplit(url), policy
        self.translates = self.place.path.endswith("/translate")

    async def __aenter__(self) -> Asker:
        self._reader, self._writer = await asyncio.open_connection(self.place.hostname, self.place.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def ask(self, text: str) -> tuple[str, float | None]:
        """The text that comes back, and ms to its first token where the server says so."""
        own = {} if self.policy is None else {"policy": self.policy}
        body = (
            {"q": text, "source": "de", "target": "en"} if self.translates else {"prompt": text, "max_tokens": LONGEST}
        )
        sent = json.dumps(body | own).encode()
        head = f"POST {self.place.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        self._writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(sent) + sent)
        found = await self._answer()
        if self.translates:
            return found["translatedText"], None
        return found["choices"][0]["text"], found.get("metrics", {}).get("time_to_first_token_ms")

    async def _answer(self) -> Any:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        body = await self._reader.readexactly(length)
        if " 200 " not in head.split("\r\n")[0]:
            raise SystemExit(f"the server refused: {body.decode()[:300]}")
        return json.loads(body)


async def load(url: str, policy: str | None, texts: Sequence[str], clients: int) -> Load:
    """Ask for all texts, so many at once."""
    done = Load([""] * len(texts))
    left = iter(enumerate(texts))

    async def client() -> None:
        async with Asker(url, policy) as asker:
            for at, text in left:
                start = time.perf_counter()
                done.texts[at], first = await asker.ask(text)
                done.milliseconds.append((time.perf_counter() - start) * 1e3)
                done.first += [] if first is None else [first]

    start = time.perf_counter()
    await asyncio.gather(*[client() for _ in range(clients)])
    done.seconds = time.perf_counter() - start
    return done


SHAPES = ("1:1:1", "2:1:1", "1:2:1", "2:1:8", "2:1:32", "1:1:8", "1:2:8", "1:2:16")
TOKENIZER = Path(__file__).parents[1] / "models" / "de-en" / "large" / "tokenizer.json"


class Served(NamedTuple):
    """A server of ours in a process of its own."""

    url: str
    process: int


@contextmanager
def served(arguments: Sequence[str]) -> Iterator[Served]:
    """Start a server of ours; it is told to stop at the end."""
    with started([sys.executable, "-m", "bild", "serve", "--port", "0", "--queue", "1000", *arguments]) as server:
        yield server


@contextmanager
def started(command: Sequence[str]) -> Iterator[Served]:
    """Start a server that says in its first line on stderr where it serves; it is told to stop at the end."""
    with open(os.devnull, "w") as nothing, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        line = program.stderr.readline()
        if not line.startswith("serving "):
            raise SystemExit(f"the server did not start: {line.strip()}")
        # Its log is read by nobody, and must not stop it.
        drain = subprocess.Popen(["cat"], stdin=program.stderr, stdout=nothing)
        try:
            yield Served(line.split()[-1], program.pid)
        finally:
            program.send_signal(signal.SIGTERM)
            program.wait(60)
            drain.kill()
            drain.wait()


def overhead(args: argparse.Namespace, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds a text in this process and over HTTP, one text at a time, in turn, and the share HTTP adds.

    The server decodes in one lane, whose products have as many threads as those of this process.
    """
    decoder = bild.BigLittleDecoder.from_pretrained(args.pair, runtime=args.runtime, dtype=args.dtype)
    with served([*options(args), "--lanes", "1"]) as server:
        return compare(args, texts, decoder, f"{server.url}/v1/completions")


def compare(
    args: argparse.Namespace, texts: Sequence[str], decoder: bild.BigLittleDecoder, url: str
) -> dict[str, float]:
    """What :func:`overhead` returns, of a decoder and a server.

    A few texts are decoded here and there in turn: a machine is not as fast one minute as the next.
    """
    own, http = [], []
    for at in range(args.repeats + 1):
        for begin in range(0, len(texts), TURN):
            some = texts[begin : begin + TURN]
            start = time.perf_counter()
            for text in some:
                decoder.generate(text, max_new_tokens=LONGEST)
            here = time.perf_counter() - start
            there = asyncio.run(load(url, "bild", some, 1)).seconds
            # The first time is a warm-up.
            own += [here / len(some)] if at else []
            http += [there / len(some)] if at else []
    ms = [1e3 * statistics.mean(times) for times in (own, http)]
    return {"in_process_ms": round(ms[0], 3), "http_ms": round(ms[1], 3), "overhead": round(ms[1] / ms[0] - 1, 4)}


@dataclass
class Table:
    """The best of each engine, by clients.

    Args:
        texts: that are asked for.
        targets: what they should come to.
        counts: of clients.
    """

    texts: Sequence[str]
    targets: Sequence[str]
    counts: Sequence[int]
    found: dict[tuple[int, str, str], list[dict[str, float]]] = field(default_factory=dict)
    """What each round came to, by clients, engine and setting."""

    def measure(self, engine: Engine) -> None:
        """Ask a server with each number of clients, after as many texts as it decodes together."""
        asyncio.run(load(engine.url, engine.policy, self.texts[: 2 * engine.warm], engine.warm))
        for count in self.counts:
            found = asyncio.run(load(engine.url, engine.policy, self.texts, count)).summary(self.targets)
            line = f"{engine.name} ({engine.setting}), {count} clients: {json.dumps(found)}"
            print(line, file=sys.stderr, flush=True)
            self.found.setdefault((count, engine.name, engine.setting), []).append(found)

    def best(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By clients and engine, the median round of the setting that serves most."""
        best: dict[str, dict[str, dict[str, Any]]] = {}
        for (count, name, setting), rounds in self.found.items():
            middle = sorted(rounds, key=lambda each: each["rps"])[len(rounds) // 2]
            spread = [each["rps"] for each in rounds]
            known = best.setdefault(str(count), {})
            if name not in known or middle["rps"] > known[name]["rps"]:
                known[name] = {**middle, "setting": setting, "rounds": spread}
        return best


class Engine(NamedTuple):
    """A server in one setting, asked for one policy."""

    name: str
    setting: str
    url: str
    policy: str | None
    warm: int


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    examples = [each for data in read_sets(args.data, None, limit=args.texts).values() for each in data.examples]
    texts = [example.source for example in examples]
    table = Table(texts, [next(iter(example.references), "") for example in examples], args.clients)
    cost = overhead(args, texts[: args.overhead_texts])
    with ExitStack() as stack:
        engines = [*own_engines(args, stack), *ctranslate2_engines(args, stack), *other_engines(args.other)]
        for number in range(args.repeats):
            # In turn, and beginning elsewhere each time: a machine is not as fast one minute as the next.
            for at in range(len(engines)):
                table.measure(engines[(at + number * len(engines) // args.repeats) % len(engines)])
    best = table.best()
    rates = {count: {name: found["rps"] for name, found in each.items()} for count, each in best.items()}
    print(json.dumps({**cost, "clients": rates, "details": best, "machine": describe_machine()}))


def own_engines(args: argparse.Namespace, stack: ExitStack) -> Iterator[Engine]:
    """A server for each number of rows and lanes, asked for each policy."""
    for rows, lanes in product(args.max_rows, args.lanes):
        if rows < lanes:
            continue
        server = stack.enter_context(served([*options(args), "--max-rows", str(rows), "--lanes", str(lanes)]))
        url = f"{server.url}/v1/completions"
        for policy in args.policies:
            yield Engine(policy, f"{rows} rows, {lanes} lanes", url, policy, rows)


def options(args: argparse.Namespace) -> list[str]:
    """What every server of ours is told."""
    pair = [] if args.pair is None else ["--pair", args.pair]
    return ["--runtime", args.runtime, "--dtype", args.dtype, *pair]


def ctranslate2_engines(args: argparse.Namespace, stack: ExitStack) -> Iterator[Engine]:
    """CTranslate2 with each number of threads, of workers, and each batch size."""
    if args.ctranslate2 is None:
        return
    program = str(Path(__file__).with_name("ctranslate2_server.py"))
    for shape in args.ctranslate2_shapes:
        threads, workers, batch = shape.split(":")
        command = [args.ctranslate2_python, program, "--model", args.ctranslate2, "--tokenizer", args.tokenizer]
        server = stack.enter_context(started([*command, "--threads", threads, "--workers", workers, "--batch", batch]))
        setting = f"{threads} threads, {workers} workers, batches of {batch}"
        yield Engine("ctranslate2", setting, f"{server.url}/v1/completions", None, int(batch))


def other_engines(named: Sequence[str]) -> Iterator[Engine]:
    """Servers that run already."""
    for each in named:
        name, url = each.split("=", 1)
        yield Engine(name, "as it runs", url, None, 4)


def parse_arguments() -> argparse.Namespace:
    """What is to be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="JSON lines with a source and a target each")
    parser.add_argument("--texts", type=int, default=256, help="first examples of each set")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--policies", nargs="+", default=["bild", "exact", "large"])
    parser.add_argument("--other", nargs="*", default=[], help="NAME=URL of a server that runs already")
    parser.add_argument("--max-rows", type=int, nargs="+", default=[1, 4], help="of our server, each in turn")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1], help="likewise")
    parser.add_argument("--ctranslate2", default=None, help="folder of the large model, converted")
    parser.add_argument("--ctranslate2-python", default=sys.executable, help="a Python that has ctranslate2")
    parser.add_argument(
        "--ctranslate2-shapes", nargs="+", default=SHAPES, help="THREADS:WORKERS:BATCH of its server, each in turn"
    )
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="of the large model")
    parser.add_argument("--pair", default=None)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--overhead-texts", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="rounds through all servers; the median counts")
    return parser.parse_args()


if __name__ == "__main__":
    main()
