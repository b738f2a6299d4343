"""Chat engines beside BiLD: one model, the same prompts, each engine in a process of its own at its best threads.

    python benchmarks/chat_peers.py --large chat.gguf --prepare                      # environments, files, graphs
    python benchmarks/chat_peers.py --large chat.gguf [--small DIR] [--prompts FILE] [--limit 6] [--max-new-tokens 64]

Peers: llama.cpp (Q8_0, and the file as it is), OpenVINO GenAI (Q8_0), ONNX Runtime GenAI (int8, int4), transformers
(bfloat16); each plainly and with its prompt lookup, transformers also assisted. Texts are greedy, end at an end token
and are counted in tokens a second, from prompt ids to new ids. A few prompts say first which number of threads suits
each engine best; that is kept in --out, as is every answer: a killed run goes on. A peer that cannot run is named with
the reason. The last line is JSON: tokens a second of our fastest lossless row / those of each peer's fastest
(``speedup``), our lossless and our lossy best / our large model alone (``lossless``, ``bild``).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from chat_engines import ENGINES, OWN, Engine, Row, Workshop, say
from chat_report import keep, print_rows
from transformers import AutoTokenizer, GenerationConfig

from bild.data import Example
from bild.errors import BildError, LoadError
from bild.evaluation.bootstrap import Bootstrap, Estimate
from bild.evaluation.journal import Journal
from bild.evaluation.measure import measure

PROMPTS = [
    "Explain in a few sentences how a bicycle stays upright.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "List the steps to make a cup of tea, each with a reason.",
    "Correct the spelling and write the text again: Their are too mistakes in this sentense, pleese mend it.",
    "Summarize: The harbour of the old town was built in 1704. It was widened twice, in 1820 and in 1911, and closed "
    "to cargo ships in 1968. Today the harbour of the old town is used by sailing boats and the ferry to the islands.",
    "What is the difference between weather and climate?",
    "Write a Python function that counts the vowels of a text, then write it again without a loop.",
    "A shop sells apples for 3 coins and pears for 4 coins. How much do 5 apples and 2 pears cost? Think step by step.",
]
"""Where no file is given."""
TRIAL_PROMPTS, TRIAL_TOKENS, WARM_UP = 2, 24, 1
THREADS, OUTPUTS = "threads.json", "outputs.jsonl"


def main() -> None:
    """Prepare, or measure and print."""
    args = parse_arguments()
    shop = Workshop(args.large, args.small, dict(each.split("=", 1) for each in args.python), args.dtype, args.runtime)
    engines = [own_engine(args), *(each for each in ENGINES if not args.peers or each.peer in args.peers)]
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {"ends": ends_of(shop.checkpoint), "max_new_tokens": args.max_new_tokens}
    prompts = prompts_of(shop.checkpoint, args.prompts)[: args.limit]
    if args.prepare:
        prepare(shop, engines, args.threads, asked, prompts[0])
        return
    failed: dict[str, str] = {}
    threads = best_threads(shop, engines, args, asked, prompts, failed)
    rows = start(shop, engines, threads, asked, failed)
    examples = [Example(str(at), json.dumps(ids)) for at, ids in enumerate(prompts)]
    journal = Journal([row.name for row in rows], args.out / OUTPUTS)
    try:
        measure(rows, {"chat": examples}, journal, warm_up=WARM_UP, progress=lambda done, of: say(f"{done} of {of}"))
    finally:
        journal.close()
        for row in rows:
            row.close()
    table, line = compare(journal, len(prompts), failed)
    line["threads"] = threads
    print_rows(table, failed)
    keep(table, line, {name: row.details for name, row in ((row.name, row) for row in rows)})
    print(json.dumps(line))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", required=True, help="the chat model: a GGUF file, or a folder (no llama.cpp then)")
    parser.add_argument("--small", default=None, help="a drafter of the same vocabulary, for bild and for assistance")
    parser.add_argument("--prompts", type=Path, default=None, help="one a line, or JSON lines with turns (Spec-Bench)")
    parser.add_argument("--limit", type=int, default=6, help="first prompts; of Spec-Bench spread over the file")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--modes", default="", help="further rows of ours, POLICY@DRAFTER,… as bild:rollback_threshold=3@small"
    )
    parser.add_argument(
        "--peers", nargs="*", default=[], help=f"of {', '.join(each.peer for each in ENGINES)}; default all"
    )
    parser.add_argument("--threads", type=int, nargs="*", default=list(range(1, (os.cpu_count() or 1) + 1)))
    parser.add_argument("--dtype", default="int8", help="of our rows")
    parser.add_argument("--runtime", default="static", help="of our rows")
    parser.add_argument("--python", nargs="*", default=[], help="WORKER=PYTHON: an environment that is there already")
    parser.add_argument("--prepare", action="store_true", help="make all that a run needs, and measure nothing")
    parser.add_argument("--out", type=Path, default=Path("out/chat-peers"))
    return parser.parse_args()


def own_engine(args: argparse.Namespace) -> Engine:
    """Our rows: large alone, lossless and lossy, by every drafter there is."""
    modes = ["large", "exact@ngram", "bild@ngram"]
    if args.small:
        modes += ["exact@small", "exact@first:ngram+small", "bild@small"]
    modes += [mode for mode in args.modes.split(",") if mode]
    return Engine(OWN, OWN, args.dtype, tuple(modes))


def ends_of(checkpoint: Path) -> list[int]:
    """Tokens that end a text."""
    ends = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def prompts_of(checkpoint: Path, file: Path | None) -> list[list[int]]:
    """Token ids of prompts, by the checkpoint's chat template; those of Spec-Bench one of each category in turn."""
    texts = PROMPTS if file is None else texts_of(file)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    turns = [[{"role": "user", "content": text}] for text in texts]
    encoded = [tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=True) for each in turns]
    return [list(each["input_ids"]) for each in encoded]


def texts_of(file: Path) -> list[str]:
    """The lines of a text file, or first turns of Spec-Bench's questions."""
    if file.suffix != ".jsonl":
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    from bild.evaluation.spec_bench import read_questions

    questions = read_questions(file).questions
    groups = {
        name: [q.turns[0] for q in questions if q.group == name] for name in dict.fromkeys(q.group for q in questions)
    }
    longest = max(map(len, groups.values()))
    return [members[at] for at in range(longest) for members in groups.values() if at < len(members)]


def prepare(
    shop: Workshop, engines: Sequence[Engine], threads: Sequence[int], asked: Mapping[str, Any], prompt: list[int]
) -> None:
    """Make environments, model files and graphs, and let each engine say a word."""
    short = {**asked, "max_new_tokens": 2}
    for engine in engines:
        for mode in engine.modes:
            for count in threads if engine.worker == OWN and mode == engine.modes[0] else threads[:1]:
                try:
                    worker = shop.start(engine, mode, count, short)
                    try:
                        output = Row(engine.peer, worker, mode)(json.dumps(prompt))
                        say(f"{engine.peer} {mode}, {count} threads: ready, writes {output.token_ids}")
                    finally:
                        worker.close()
                except BildError as error:
                    say(f"{engine.peer} {mode}: {error}")


def best_threads(
    shop: Workshop,
    engines: Sequence[Engine],
    args: argparse.Namespace,
    asked: Mapping[str, Any],
    prompts: Sequence[list[int]],
    failed: dict[str, str],
) -> dict[str, int]:
    """The number of threads at which each engine is fastest in its first mode; kept in a file."""
    file = args.out / THREADS
    known: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for engine in engines:
        if engine.peer in known:
            continue
        try:
            known[engine.peer] = {
                str(count): trial(shop, engine, count, asked, prompts[:TRIAL_PROMPTS]) for count in args.threads
            }
        except BildError as error:
            failed[engine.peer] = str(error)
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return {peer: int(min(seconds, key=seconds.__getitem__)) for peer, seconds in known.items()}


def trial(
    shop: Workshop, engine: Engine, threads: int, asked: Mapping[str, Any], prompts: Sequence[list[int]]
) -> float:
    """Seconds of a few prompts, after one that is not timed."""
    worker = shop.start(engine, engine.modes[0], threads, {**asked, "max_new_tokens": TRIAL_TOKENS})
    try:
        row = Row(engine.peer, worker, engine.modes[0])
        outputs = [row(json.dumps(ids)) for ids in [prompts[0], *prompts]]
    finally:
        worker.close()
    say(f"{engine.peer}, {threads} threads: {sum(each.total_s or 0.0 for each in outputs[1:]):.2f} s")
    return sum(each.total_s or 0.0 for each in outputs[1:])


def start(
    shop: Workshop,
    engines: Sequence[Engine],
    threads: Mapping[str, int],
    asked: Mapping[str, Any],
    failed: dict[str, str],
) -> list[Row]:
    """All rows, ready."""
    rows: list[Row] = []
    for engine in engines:
        worker = None
        for name, mode in engine.rows().items():
            if engine.peer not in threads:
                continue
            try:
                if worker is None or engine.reloads:
                    worker = shop.start(engine, mode, threads[engine.peer], asked)
                rows.append(Row(name, worker, mode))
            except LoadError as error:
                failed[name] = str(error)
    return rows


def compare(journal: Journal, count: int, failed: dict[str, str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The figures of every row, and the line of results."""
    records = {name: [journal.records["chat", str(at)][name] for at in range(count)] for name in journal.methods}
    for name in list(records):
        wrong = next((record.error for record in records[name] if record.error is not None), None)
        if wrong is not None:
            failed[name] = wrong
            del records[name]
    rates = {name: np.array([len(r.token_ids) / (r.total_s or 1.0) for r in of]) for name, of in records.items()}
    alone = f"{OWN}:large"
    table = {
        name: {
            "tokens_per_second": float(rates[name].mean()),
            "tokens": sum(len(record.token_ids) for record in of),
            "same_as_large": sum(a.token_ids == b.token_ids for a, b in zip(of, records[alone], strict=True)) / count,
        }
        for name, of in records.items()
    }
    lossless = max((n for n in table if n.startswith(f"{OWN}:exact")), key=lambda n: rates[n].mean())
    lossy = max((n for n in table if n.startswith(f"{OWN}:bild")), key=lambda n: rates[n].mean(), default=None)
    best = fastest({name: float(of.mean()) for name, of in rates.items()})
    line: dict[str, Any] = {
        "speedup": {peer: round(ratio(rates, lossless, name)[0], 3) for peer, name in best.items()},
        "lossless": round(ratio(rates, lossless, alone)[0], 3),
        "bild": None if lossy is None else round(ratio(rates, lossy, alone)[0], 3),
        "interval": {
            peer: [round(each, 3) for each in ratio(rates, lossless, name)[1:]] for peer, name in best.items()
        },
        "settings": {**best, "lossless": lossless, "bild": lossy},
        "tokens_per_second": {name: round(each["tokens_per_second"], 2) for name, each in table.items()},
        "failed": failed,
    }
    return table, line


def fastest(rates: Mapping[str, float]) -> dict[str, str]:
    """Each peer's fastest row."""
    best: dict[str, str] = {}
    for name in sorted(rates, key=rates.__getitem__, reverse=True):
        peer = name.partition(":")[0]
        if peer != OWN:
            best.setdefault(peer, name)
    return best


def ratio(rates: Mapping[str, np.ndarray], own: str, other: str) -> tuple[float, float, float]:
    """Mean tokens a second of one row / those of another, and the 95 % paired bootstrap interval over prompts."""
    table = np.stack([rates[own], rates[other]], axis=1)
    sums = np.vstack([table.sum(0), Bootstrap(len(table)).sums(table)])
    values = (sums[:, 0] / sums[:, 1]).tolist()
    found = Estimate.of(values[0], values[1:])
    assert found.value is not None and found.low is not None and found.high is not None
    return found.value, found.low, found.high


if __name__ == "__main__":
    try:
        main()
    except BildError as error:
        raise SystemExit(f"error: {error}") from None
