"""The loop of all workers, and the protocol they speak; knows nothing of bild, whose packages are elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

Settings = dict[str, Any]
"""``checkpoint``, ``model`` (folders), ``dtype``, ``threads`` and, to serve, ``max_new_tokens``."""
Decode = Callable[[Any], list[int]]
"""From the encoding of a text to new token ids, the end token included."""


def main(
    convert: Callable[[Settings], None],
    load: Callable[[Settings, Tokenizer], tuple[Decode, int]],
    packages: tuple[str, ...],
) -> None:
    """Run ``convert JSON`` or ``serve JSON``, as the command line says.

    Args:
        convert: writes the checkpoint in the engine's format to the folder ``model``.
        load: loads that folder; returns what decodes, and the bytes of its weights.
        packages: whose versions to report.
    """
    task, settings = sys.argv[1], json.loads(sys.argv[2])
    if task == "convert":
        convert(settings)
        return
    answers = _protocol()
    tokenizer = _tokenizer(settings)
    try:
        decode, weight_bytes = load(settings, tokenizer)
    except Exception as error:  # whatever the engine raises is the answer
        _say(answers, {"error": _one_line(error)})
        return
    versions = {package: version(package) for package in packages}
    details = {"dtype": settings["dtype"], "threads": settings["threads"]}
    _say(answers, {"ready": True, "weight_bytes": weight_bytes, "versions": versions, **details})
    for line in sys.stdin:
        _say(answers, _answer(json.loads(line)["source"], tokenizer, decode))


def weight_bytes(folder: str, pattern: str) -> int:
    """Bytes of the files of this pattern: weights are all but a little of them."""
    return sum(file.stat().st_size for file in Path(folder).glob(pattern))


def _answer(source: str, tokenizer: Tokenizer, decode: Decode) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        token_ids = decode(tokenizer.encode(source))
        text = tokenizer.decode(token_ids, skip_special_tokens=True)
    except Exception as error:  # one text the engine cannot decode
        return {"error": _one_line(error)}
    total_s = time.perf_counter() - start
    return {"text": text, "token_ids": token_ids, "total_s": total_s, "ttft_s": None}


def _tokenizer(settings: Settings) -> Tokenizer:
    # Read as it is: older transformers do not know the tokenizer class that newer ones write down.
    tokenizer = Tokenizer.from_file(str(Path(settings["checkpoint"]) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _protocol() -> Any:
    """Our own line to the parent; what a library prints goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return answers


def _say(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
