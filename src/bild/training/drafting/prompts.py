"""Prompts that the large model writes itself: a user's turns by its chat template, or the beginnings of texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bild.data import Data, Example
from bild.data.files import whole_lines
from bild.data.json_text import from_json, to_json
from bild.errors import InputError, one_line
from bild.generation import BigLittleDecoder
from bild.generation.seeds import fold
from bild.training.checkpoint import writing
from bild.training.progress import duration, say

FILE = "prompts.jsonl"
ROWS = 64
"""Prompts drawn together."""
LONGEST_TURN, LONGEST_BEGINNING = 128, 24
"""Tokens of a user's turn, and of the beginning of a text where there are no turns."""
TOP_K = 50
"""Likeliest tokens that are drawn from: what is less likely spoils more prompts than it adds kinds of them."""
PATIENCE = 4
"""Times as many draws as prompts are wanted, after which a model repeats itself too often."""
MARK = "\x02the user's text\x03"


@dataclass(frozen=True)
class Opening:
    """What a prompt is drawn behind.

    Args:
        ids: tokens before it.
        ends: tokens that end it, beside the checkpoint's own.
        stops: texts that end it.
        longest: tokens it may have.
        must_end: whether one that is cut at that length is no prompt.
    """

    ids: list[int]
    ends: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    longest: int = LONGEST_BEGINNING
    must_end: bool = False


def opening_of(tokenizer: PreTrainedTokenizerBase, chat: bool | None) -> Opening:
    """Where a model writes a prompt.

    Args:
        tokenizer: of the model.
        chat: whether prompts are a user's turns; None: where there is a chat template.

    Raises:
        InputError: a template that fails or does not show the user's text, or a model with no token to begin with.
    """
    if chat or (chat is None and tokenizer.chat_template):
        return _turn(tokenizer)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise InputError("the tokenizer names no token a text begins with; give prompts with --data")
    return Opening([int(begin)])


def _turn(tokenizer: PreTrainedTokenizerBase) -> Opening:
    if not tokenizer.chat_template:
        raise InputError("the checkpoint has no chat template; give prompts with --data, or --no-chat")
    try:
        shown: Any = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
    except Exception as error:  # a template is a program of the checkpoint and may raise anything
        raise InputError(
            f"the chat template refuses a user's turn ({one_line(error)}); give prompts with --data and --no-chat"
        ) from None
    before, mark, behind = str(shown).partition(MARK)
    if not mark:
        raise InputError("the chat template does not show the user's text as it is; give prompts with --data")
    ids = tokenizer(before, add_special_tokens=False).input_ids
    if not ids:
        raise InputError("the chat template writes nothing before a user's turn; give prompts with --data")
    after = tokenizer(behind, add_special_tokens=False).input_ids
    if after and after[0] in tokenizer.all_special_ids:
        return Opening(list(ids), (int(after[0]),), (), LONGEST_TURN, True)
    stop = behind.strip().splitlines()[:1]
    return Opening(list(ids), (), tuple(stop), LONGEST_TURN, True)


def own_prompts(folder: Path, count: int, opening: Opening, seed: int, decoder: Callable[[], BigLittleDecoder]) -> Data:
    """So many different prompts, the same ones each time; a killed run goes on with its next draws.

    Args:
        folder: of the run, which keeps them.
        count: prompts, 1…
        opening: where they are drawn.
        seed: of the draws.
        decoder: loads the large model; not called where nothing is left to do.

    Raises:
        InputError: the model writes nothing that could be one.
    """
    file = folder / FILE
    found, batch = _read(file)
    if len(found) < count and batch < _most(count):
        loaded, begin, before = decoder(), time.perf_counter(), len(found)
        while len(found) < count and batch < _most(count):
            drawn = _draw(loaded, opening, fold(seed, batch))
            fresh = [text for text in dict.fromkeys(drawn) if text not in found]
            _append(file, batch, fresh)
            found |= dict.fromkeys(fresh)
            batch += 1
            took = time.perf_counter() - begin
            left = took / max(1, len(found) - before) * max(0, count - len(found))
            say(f"prompts {min(len(found), count)}/{count} · {duration(left)} left")
    if not found:
        raise InputError("the large model writes no prompts of its own; give some with --data")
    texts = list(found)[:count]
    say(f"prompts: {len(texts)} of its own in {file}")
    return Data("prompts", [Example(str(at), text) for at, text in enumerate(texts, 1)])


def _most(count: int) -> int:
    return PATIENCE * -(-count // ROWS)


def _draw(decoder: BigLittleDecoder, opening: Opening, seed: int) -> list[str]:
    """Texts of a batch of draws that could be prompts."""
    config = decoder.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    options: dict[str, Any] = {"eos_token_id": [id for id in (*known, *opening.ends) if id is not None]}
    if opening.stops:
        options["stop_strings"] = list(opening.stops)
    results = decoder.generate(
        [opening.ids] * ROWS,
        "large",
        batch_size=ROWS,
        max_new_tokens=opening.longest,
        do_sample=True,
        top_k=TOP_K,
        seed=seed,
        **options,
    )
    texts = [result.text for result in results if not opening.must_end or result.finish_reason != "length"]
    for stop in opening.stops:
        texts = [text.removesuffix(stop) for text in texts]
    return [text.strip() for text in texts if text.strip()]


def _read(file: Path) -> tuple[dict[str, None], int]:
    """Prompts that are there, and the number of the next batch."""
    if not file.exists():
        return {}, 0
    lines = [from_json(line) for line in whole_lines(file)]
    found = dict.fromkeys(text for line in lines for text in line["prompts"])
    return found, max((line["batch"] + 1 for line in lines), default=0)


def _append(file: Path, batch: int, texts: list[str]) -> None:
    with writing(file), file.open("a", encoding="utf-8") as opened:
        opened.write(to_json({"batch": batch, "prompts": texts}) + "\n")
