"""Source and target language of multilingual checkpoints (NLLB, M2M-100, mBART, PLBart, Marian, MADLAD)."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from bild.errors import InputError
from bild.generation.text import Vocabulary

_SOURCE = threading.RLock()
"""A tokenizer keeps its source language as a state, which two threads must not change at the same time."""


@contextmanager
def source_language(tokenizer: PreTrainedTokenizerBase, code: str | None) -> Iterator[None]:
    """Encode in this language; None: in the one that the tokenizer is set to."""
    if not hasattr(tokenizer, "src_lang"):
        yield
        return
    with _SOURCE:
        if code is None:
            yield
            return
        before = tokenizer.src_lang
        tokenizer.src_lang = code
        try:
            yield
        finally:
            tokenizer.src_lang = before


@contextmanager
def target_language(tokenizer: PreTrainedTokenizerBase, code: str | None) -> Iterator[None]:
    """Encode targets (``text_target``) in this language; None: in the one that the tokenizer is set to."""
    if code is None or not hasattr(tokenizer, "tgt_lang"):
        yield
        return
    with _SOURCE:
        before = tokenizer.tgt_lang
        tokenizer.tgt_lang = code
        try:
            yield
        finally:
            tokenizer.tgt_lang = before


def check_source(tokenizer: PreTrainedTokenizerBase, code: str) -> None:
    """Whether texts can be said to be in this language.

    Raises:
        InputError: if not, and why.
    """
    if not hasattr(tokenizer, "src_lang"):
        raise InputError(
            f"src_lang is {code!r}, but the checkpoint's tokenizer knows no source languages; leave it out"
        )
    if _token(tokenizer, code) is None:
        raise _unknown(tokenizer, "src_lang", code)


def source_prefix(tokenizer: PreTrainedTokenizerBase, code: str) -> str:
    """What a text must begin with to be translated into this language; empty where the output says so."""
    for name in (f">>{code}<<", f"<2{code}>"):
        if _id(tokenizer, name) is not None:
            return f"{name} "
    return ""


def check_target(tokenizer: PreTrainedTokenizerBase, code: str, *, encodes: bool) -> None:
    """Whether outputs can be asked for in this language.

    Args:
        tokenizer: of the pair.
        code: as the checkpoint spells it, such as ``"fra_Latn"`` or ``"fr"``.
        encodes: whether the models are encoder-decoders.

    Raises:
        InputError: the checkpoint has no such language.
    """
    if not source_prefix(tokenizer, code) and (not encodes or _token(tokenizer, code) is None):
        raise _unknown(tokenizer, "tgt_lang", code)


def target_options(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, code: str) -> dict[str, Any]:
    """The options of a call that make the output be in this language; none where the source says so.

    Args:
        tokenizer: of the pair.
        config: the large checkpoint's.
        code: one that :func:`check_target` takes.
    """
    token = _token(tokenizer, code)
    if source_prefix(tokenizer, code) or token is None:
        return {}
    start = config.decoder_start_token_id
    # mBART-25 and PLBart start from the language; mBART-50, NLLB and M2M-100 start from </s> and write it first.
    starts = start is None or start in _languages(tokenizer).values()
    return {"decoder_start_token_id" if starts else "forced_bos_token_id": token}


def _token(tokenizer: PreTrainedTokenizerBase, code: str) -> int | None:
    known = _languages(tokenizer)
    return known.get(code, known.get(f"__{code}__"))


def _languages(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Tokens that may name a language: special ones without another use."""
    vocabulary = Vocabulary.of(tokenizer)
    used = {getattr(tokenizer, f"{use}_token_id", None) for use in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    return {vocabulary.name(id): id for id in sorted(vocabulary.special - used)}


def _id(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    found: Any = tokenizer.convert_tokens_to_ids(name)
    return None if found is None or found == tokenizer.unk_token_id else int(found)


def _unknown(tokenizer: PreTrainedTokenizerBase, option: str, code: str) -> InputError:
    names = [name.strip("_") for name in _languages(tokenizer)]
    close = difflib.get_close_matches(code, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else "leave it out, or write the language into --prefix"
    return InputError(f"{option} is {code!r}, which is no language of this checkpoint; {hint}")
