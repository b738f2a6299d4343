"""What ``generate`` can be asked for, under transformers' names, on top of the checkpoint's generation config."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bild.data.settings import DEFAULT_MAX_NEW_TOKENS
from bild.decoding import Choice, Greedy, Sampling
from bild.errors import InputError
from bild.generation.processors import process_with, warp_with


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of one call; None means: as the large checkpoint's generation config says.

    Sampling is the exception: a text is greedy unless ``do_sample=True`` is asked for, whatever
    the checkpoint recommends; its temperature, top-k and top-p then apply.

    Args:
        max_new_tokens: longest continuation, 1…; default from the checkpoint, else 256.
        min_new_tokens: the end token is forbidden before, 0…
        min_length: the same, counted with the prompt.
        do_sample: draw tokens instead of taking the most likely one; default False.
        temperature: > 0; below 1 sharpens, above 1 flattens.
        top_k: draw among the k most likely tokens only; 0 = all.
        top_p: draw among the most likely tokens that hold this share of probability, 0…1.
        min_p: drop tokens less likely than this share of the most likely one, 0…1.
        repetition_penalty: > 0; above 1 makes tokens already written less likely.
        no_repeat_ngram_size: no n-gram of this size twice; 0 = off.
        encoder_no_repeat_ngram_size: no n-gram of this size of the source; 0 = off.
        bad_words_ids: token sequences that are never written.
        suppress_tokens: token ids never written.
        begin_suppress_tokens: token ids not written first.
        forced_bos_token_id: first token written after the decoder start.
        forced_eos_token_id: token written at the longest length.
        eos_token_id: token id, or several, that end the text.
        decoder_start_token_id: what an encoder-decoder starts from.
        stop_strings: text, or several, that end the text; they stay part of it, as in transformers.
        seed: of the draws; an integer for every row alike, or one a row; None: different each call, as
            torch's global generator says.

    Raises:
        InputError: a value out of range.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    decoder_start_token_id: int | None = None
    stop_strings: str | Sequence[str] | None = None
    seed: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, allowed, valid in RANGES:
            value = getattr(self, name)
            if value is not None and not valid(value):
                raise InputError(f"{name} is {value}; allowed is {allowed}")

    @classmethod
    def over(cls, config: GenerationConfig, given: dict[str, Any]) -> GenerationOptions:
        """The options of a call: what was given, else what the checkpoint's config says.

        Raises:
            InputError: an option that does not exist, or a value out of range.
        """
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(names)}"
                raise InputError(f"unknown option {name!r}{hint}")
        values = {name: getattr(config, name, None) for name in names} | {"do_sample": False}
        values |= {name: value for name, value in given.items() if value is not None}
        if values["max_new_tokens"] is None:
            # A checkpoint's max_length counts the decoder start; 20 is transformers' default, nobody's choice.
            longest = config.max_length
            values["max_new_tokens"] = longest - 1 if longest and longest > 20 else DEFAULT_MAX_NEW_TOKENS
        return cls(**values)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset(_as_list(self.eos_token_id))

    def processor(
        self, prompt_length: int, max_new_tokens: int, source: Sequence[int] | None, device: torch.device
    ) -> Callable[[Sequence[int], Tensor], Tensor] | None:
        """The score processors of one row, in transformers' order, or None if there are none.

        Args:
            prompt_length: decoder tokens before the first new one.
            max_new_tokens: longest continuation of this row.
            source: encoder input ids, None for a decoder-only model.
            device: where the scores are.
        """
        chain = LogitsProcessorList(self._processors(prompt_length, max_new_tokens, source, device))
        return process_with(chain, lambda prefix: torch.tensor([list(prefix)], device=device))

    def _processors(
        self, prompt_length: int, max_new_tokens: int, source: Sequence[int] | None, device: torch.device
    ) -> list[Any]:
        eos = sorted(self.eos_token_ids)
        chain: list[Any] = []
        if self.repetition_penalty not in (None, 1.0):
            chain.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.no_repeat_ngram_size:
            chain.append(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size))
        if self.encoder_no_repeat_ngram_size and source is not None:
            ids = torch.tensor([list(source)], device=device)
            chain.append(EncoderNoRepeatNGramLogitsProcessor(self.encoder_no_repeat_ngram_size, ids))
        if self.bad_words_ids:
            chain.append(NoBadWordsLogitsProcessor([list(word) for word in self.bad_words_ids], eos or None))
        if self.min_length and eos:
            chain.append(MinLengthLogitsProcessor(self.min_length, eos, device=device))
        if self.min_new_tokens and eos:
            chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, self.min_new_tokens, eos, device=device))
        if self.forced_bos_token_id is not None:
            chain.append(ForcedBOSTokenLogitsProcessor(self.forced_bos_token_id))
        if self.forced_eos_token_id is not None:
            longest = prompt_length + max_new_tokens
            chain.append(ForcedEOSTokenLogitsProcessor(longest, _as_list(self.forced_eos_token_id), device=device))
        if self.suppress_tokens:
            chain.append(SuppressTokensLogitsProcessor(list(self.suppress_tokens), device=device))
        if self.begin_suppress_tokens:
            forced = prompt_length == 1 and self.forced_bos_token_id is not None
            begin = prompt_length + 1 if forced else prompt_length
            chain.append(SuppressTokensAtBeginLogitsProcessor(list(self.begin_suppress_tokens), begin, device=device))
        return chain

    def warp(self) -> Callable[[Tensor], Tensor] | None:
        """Temperature, top-k, top-p and min-p as one function of ``logits`` ``[N, V]``, or None."""
        chain: list[Any] = []
        if self.temperature not in (None, 1.0):
            chain.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p not in (None, 1.0):
            chain.append(TopPLogitsWarper(self.top_p))
        if self.min_p:
            chain.append(MinPLogitsWarper(self.min_p))
        return warp_with(LogitsProcessorList(chain))

    def choice(self) -> Choice:
        """How a model picks its next token."""
        return Sampling(self.warp()) if self.do_sample else Greedy()

    def seed_of(self, index: int) -> int | None:
        """The seed of a call's row."""
        if self.seed is None or isinstance(self.seed, int):
            return self.seed
        if index >= len(self.seed):
            raise InputError(f"{len(self.seed)} seeds for more inputs; give one a row, or a single number")
        return self.seed[index]


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


RANGES: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("max_new_tokens", "1 or more", lambda v: v >= 1),
    ("min_new_tokens", "0 or more", lambda v: v >= 0),
    ("min_length", "0 or more", lambda v: v >= 0),
    ("temperature", "more than 0", lambda v: v > 0),
    ("top_k", "0 (all) or more", lambda v: v >= 0),
    ("top_p", "more than 0, at most 1", lambda v: 0 < v <= 1),
    ("min_p", "0 to 1", lambda v: 0 <= v <= 1),
    ("repetition_penalty", "more than 0", lambda v: v > 0),
    ("no_repeat_ngram_size", "0 (off) or more", lambda v: v >= 0),
    ("encoder_no_repeat_ngram_size", "0 (off) or more", lambda v: v >= 0),
]
