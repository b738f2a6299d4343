"""CTranslate2 behind HTTP, as somebody would write it who wants the most of it: whatever waits is translated together.

    python benchmarks/ctranslate2_server.py --model FOLDER --tokenizer tokenizer.json --threads 2 --batch 32

Runs with a Python that has ctranslate2 and tokenizers, and nothing else is needed. Takes ``POST /v1/completions`` with
a prompt, and answers with its text. ``benchmarks/serve.py`` starts it with each number of threads and batch size. The
first line on stderr says where it serves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import sys
import threading
from typing import Any

import ctranslate2
from tokenizers import Tokenizer

LONGEST = 128


class Engine:
    """Translates all that waits, a batch after the other, in a thread of its own.

    Args:
        model: converted folder.
        tokenizer: file of the checkpoint's tokenizer.
        threads: of a batch.
        workers: batches that are translated at the same time.
        batch: most texts of one.
    """

    def __init__(self, model: str, tokenizer: str, threads: int, workers: int, batch: int) -> None:
        self._tokenizer, self._batch = Tokenizer.from_file(tokenizer), batch
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._waiting: queue.SimpleQueue[tuple[str, asyncio.Future[str]]] = queue.SimpleQueue()
        options = {"device": "cpu", "compute_type": "int8", "intra_threads": threads, "inter_threads": workers}
        self._ready = threading.Event()
        for _ in range(workers):
            threading.Thread(target=self._run, args=(model, options), daemon=True).start()
        self._ready.wait()

    def ask(self, text: str) -> asyncio.Future[str]:
        """The translation to come."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.put((text, future))
        return future

    def _run(self, model: str, options: dict[str, Any]) -> None:
        # Loaded where it translates: a second thread's team of OpenMP threads would be more than there are cores.
        translator = ctranslate2.Translator(model, **{**options, "inter_threads": 1})
        self._ready.set()
        while True:
            batch = [self._waiting.get()]
            while len(batch) < self._batch and not self._waiting.empty():
                batch.append(self._waiting.get())
            sources = [self._tokenizer.encode(text).tokens for text, _ in batch]
            results = translator.translate_batch(
                sources, beam_size=1, max_decoding_length=LONGEST, max_input_length=0, max_batch_size=self._batch
            )
            for (_, future), result in zip(batch, results, strict=True):
                ids = [self._tokenizer.token_to_id(token) for token in result.hypotheses[0]]
                text = self._tokenizer.decode(ids, skip_special_tokens=True)
                future.get_loop().call_soon_threadsafe(future.set_result, text)


async def serve(engine: Engine) -> None:
    """Answer until stopped."""

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                asked = json.loads(await reader.readexactly(length))
                text = await engine.ask(asked["prompt"])
                body = json.dumps({"choices": [{"text": text}]}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    print(f"serving on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", file=sys.stderr, flush=True)
    await server.serve_forever()


def main() -> None:
    """Load and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder that ct2-transformers-converter made")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    asyncio.run(serve(Engine(args.model, args.tokenizer, args.threads, args.workers, args.batch)))


if __name__ == "__main__":
    main()
