"""The loop of all chat workers: token ids in, token ids out, timed here; knows nothing of bild."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

Settings = dict[str, Any]
"""``model``, ``threads``, ``max_new_tokens``, ``ends`` (token ids that end a text), ``format`` and ``mode``."""
Decode = Callable[[list[int], str], list[int]]
"""From a prompt's token ids and a mode (how to draft) to the new ones, the end token included."""


def main(load: Callable[[Settings], tuple[Decode, dict[str, Any]]], packages: tuple[str, ...]) -> None:
    """Load what ``argv[1]`` (JSON) says, then answer a line with a line, as ``bild.evaluation.peers.worker`` asks.

    Args:
        load: returns what decodes, and facts for the report.
        packages: whose versions to report.
    """
    settings: Settings = json.loads(sys.argv[1])
    # What a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        decode, facts = load(settings)
    except Exception as error:  # whatever the engine raises is the answer
        say({"error": _one_line(error)})
        return
    versions = {package: version(package) for package in packages}
    say({"ready": True, "versions": versions, "threads": settings["threads"], **facts})
    for line in sys.stdin:
        say(_answer(json.loads(json.loads(line)["source"]), decode, settings))


def _answer(asked: dict[str, Any], decode: Decode, settings: Settings) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        tokens = decode(asked["ids"], asked["mode"])
    except Exception as error:  # one prompt the engine cannot read
        return {"error": _one_line(error)}
    total_s = time.perf_counter() - start
    return {"text": "", "token_ids": cut(tokens, settings), "total_s": total_s, "ttft_s": None}


def cut(tokens: list[int], settings: Settings) -> list[int]:
    """Up to the first end token; engines differ in whether they hand it out."""
    ends = [at for at, token in enumerate(tokens) if token in settings["ends"]]
    return tokens[: ends[0] + 1] if ends else tokens[: settings["max_new_tokens"]]


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
