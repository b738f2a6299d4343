"""What ``generate`` can be asked for, under transformers' names, on top of the checkpoint's generation config."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from bild.data.settings import DEFAULT_MAX_NEW_TOKENS
from bild.decoding import Beams, Choice, Greedy, Sampling
from bild.errors import InputError, one_line
from bild.generation.chains import as_ids, biases_of, processors_of, warpers_of
from bild.generation.checkpoint_options import DEFAULTS, check_config, check_names
from bild.generation.processors import process_with, warp_with
from bild.generation.seeds import check_seed, fold


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of one call; None means: as the large checkpoint's generation config says.

    Sampling is the exception: a text is greedy unless ``do_sample=True`` is asked for, whatever
    the checkpoint recommends; its temperature, top-k and top-p then apply.

    Args:
        max_new_tokens: longest continuation, 1…; default from the checkpoint, else 256.
        max_length: the same, counted with the prompt (an encoder-decoder's prompt is its decoder start).
        min_new_tokens: the end token is forbidden before, 0…
        min_length: the same, counted with the prompt.
        do_sample: draw tokens instead of taking the most likely one; default False.
        temperature: > 0; below 1 sharpens, above 1 flattens.
        top_k: draw among the k most likely tokens only; 0 = all.
        top_p: draw among the most likely tokens that hold this share of probability, 0…1.
        min_p: drop tokens less likely than this share of the most likely one, 0…1.
        top_h: drop tokens until this share of the entropy is left, 0…1.
        typical_p: draw among the tokens nearest to the expected surprise that hold this share, 0…1.
        epsilon_cutoff: drop tokens less likely than this, 0…1; 0 = off.
        eta_cutoff: likewise, less strictly where the distribution is flat, 0…1; 0 = off.
        repetition_penalty: > 0; above 1 makes tokens already written less likely.
        encoder_repetition_penalty: > 0; above 1 makes tokens of the source more likely.
        no_repeat_ngram_size: no n-gram of this size twice; 0 = off.
        encoder_no_repeat_ngram_size: no n-gram of this size of the source; 0 = off.
        sequence_bias: pairs of a token sequence and what is added to its last token's score.
        bad_words_ids: token sequences that are never written.
        suppress_tokens: token ids never written.
        begin_suppress_tokens: token ids not written first.
        forced_bos_token_id: first token written after the decoder start.
        forced_eos_token_id: token written at the longest length.
        exponential_decay_length_penalty: new tokens, and the factor by which the end then gets likelier with each.
        remove_invalid_values: replace scores that are no numbers.
        eos_token_id: token id, or several, that end the text.
        decoder_start_token_id: what an encoder-decoder starts from.
        stop_strings: text, or several, that end the text; they stay part of it, as in transformers. Special tokens
            are found by their names.
        seed: of the draws, an integer of 64 bits; each row's own follows from it and the row's place in the call
            (the first row has the seed itself). Or one a row. None: different each call, as torch's global
            generator says.
        logprobs: how likely each token was is recorded, and so many of the likeliest in its place, 0…
            (:attr:`Result.logprobs`); None: nothing is. The text is the same.
        num_beams: hypotheses of a beam search, 2…; what it finds is in :attr:`Result.hypotheses`. With ``do_sample``
            its layers are drawn. 1, as None: the text is written token by token. Default 1, whatever the checkpoint
            recommends.
        length_penalty: of a beam search, any number; above 0 favours long texts, below 0 short ones; default from the
            checkpoint, else 1.
        early_stopping: when a beam search ends: True: with the ``num_beams``-th finished hypothesis; False: when none
            that lives is better at its present length; ``"never"``: when none can become better. Default from the
            checkpoint, else False.

    Raises:
        InputError: a value out of range, or an option of draws, or of beams, in a call that has none.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    sequence_bias: Sequence[Any] | Mapping[tuple[int, ...], float] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool | None = None
    eos_token_id: int | Sequence[int] | None = None
    decoder_start_token_id: int | None = None
    stop_strings: str | Sequence[str] | None = None
    seed: int | Sequence[int] | None = None
    logprobs: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None

    def __post_init__(self) -> None:
        for name, allowed, valid in RANGES:
            value = getattr(self, name)
            if value is not None and not (name in DRAWS and not self.do_sample) and not valid(value):
                raise InputError(f"{name} is {value!r}; allowed is {allowed}")
        if self.searches and self.logprobs is not None:
            raise InputError(f"num_beams is {self.num_beams}, and a beam search has no logprobs; leave one of them out")
        for seed in self.seed if isinstance(self.seed, Sequence) else [self.seed]:
            check_seed(seed)
        if self.do_sample is not None and not isinstance(self.do_sample, bool | np.bool_):
            raise InputError(f"do_sample is {self.do_sample!r}; allowed are True and False")
        if "" in self._stop_strings or not all(isinstance(each, str) for each in self._stop_strings):
            raise InputError(f"stop_strings are {self.stop_strings!r}; allowed are texts of at least one letter")

    @classmethod
    def over(cls, config: GenerationConfig, given: Mapping[str, Any]) -> GenerationOptions:
        """The options of a call: what was given, else what the checkpoint's config says.

        Raises:
            InputError: an option that does not exist, a value out of range, an option of draws without any, or a
                checkpoint's config that asks for what this loop cannot do.
        """
        names = [field.name for field in fields(cls)]
        asked = {name: value for name, value in given.items() if value is not None}
        check_names(asked, names)
        check_config(config, names, asked)
        _check_draws(asked)
        _check_beams(asked)
        values = {name: getattr(config, name, None) for name in names} | {"do_sample": False, "num_beams": None}
        lengths = ("max_new_tokens", "max_length")
        if all(name in asked for name in lengths):
            raise InputError("max_new_tokens and max_length are both given; give one, the second counts the prompt too")
        least, most = asked.get("min_new_tokens"), asked.get("max_new_tokens")
        if isinstance(least, int) and isinstance(most, int) and least > most:
            raise InputError(f"min_new_tokens is {least} and max_new_tokens {most}; allowed is at most as many")
        if any(name in asked for name in lengths):
            values |= dict.fromkeys(lengths)
        # Where nobody chose a length, transformers' is a number of its own (20 in its earlier versions).
        elif values["max_new_tokens"] is None and config.max_length == DEFAULTS.max_length:
            values |= {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS, "max_length": None}
        values |= asked
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"an option has a value of another kind than allowed: {one_line(error)}") from None

    def check_ids(self, size: int) -> None:
        """Whether the tokens that options name are in the vocabulary.

        Args:
            size: of the vocabulary.

        Raises:
            InputError: one is not.
        """
        words: Any = [] if self.bad_words_ids is None else self.bad_words_ids
        if not isinstance(words, Iterable) or not all(isinstance(word, Collection) and len(word) for word in words):
            raise InputError(f"bad_words_ids is {words!r}; allowed are lists of token ids, as in [[3], [4, 5]]")
        named = {
            "decoder_start_token_id": as_ids(self.decoder_start_token_id),
            "forced_bos_token_id": as_ids(self.forced_bos_token_id),
            "forced_eos_token_id": as_ids(self.forced_eos_token_id),
            "bad_words_ids": [id for word in words for id in word],
            "sequence_bias": [id for tokens, _ in biases_of(self.sequence_bias) for id in tokens],
        }
        for id in as_ids(self.eos_token_id):
            # An end token that the vocabulary lacks is never written, as -1 in some checkpoints.
            if not isinstance(id, Integral):
                raise InputError(f"eos_token_id names {id!r}; allowed are whole numbers")
        for name, ids in named.items():
            for id in ids:
                if not isinstance(id, Integral) or not 0 <= int(id) < size:
                    raise InputError(f"{name} names token id {id!r}; allowed are whole numbers, 0 to {size - 1}")

    def new_tokens(self, prompt_length: int) -> int:
        """The longest continuation of a prompt.

        Args:
            prompt_length: decoder tokens before the first new one.

        Raises:
            InputError: ``max_length`` leaves no room for one.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return DEFAULT_MAX_NEW_TOKENS
        if self.max_length <= prompt_length:
            raise InputError(
                f"max_length is {self.max_length}, and the prompt alone has {prompt_length} tokens; "
                "give max_new_tokens, which does not count them"
            )
        return self.max_length - prompt_length

    def to_dict(self) -> dict[str, Any]:
        """What the scores and the draws are made of, as JSON values; lengths, stop strings and the seed are not."""
        left_out = ("max_new_tokens", "max_length", "stop_strings", "seed", "decoder_start_token_id")
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: value for name, value in given.items() if value is not None and name not in left_out}
        if "sequence_bias" in values:
            values["sequence_bias"] = biases_of(values["sequence_bias"])
        return {name: _plain(value) for name, value in values.items()}

    @property
    def searches(self) -> bool:
        """Whether texts are found by a beam search."""
        return self.num_beams is not None and self.num_beams > 1

    def beams(self) -> Beams | None:
        """How texts are searched; None: they are not."""
        if self.num_beams is None or self.num_beams == 1:
            return None
        asked: dict[str, Any] = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        return Beams(width=self.num_beams, **{name: value for name, value in asked.items() if value is not None})

    @property
    def _stop_strings(self) -> list[str]:
        given: Any = self.stop_strings
        if given is None:
            return []
        return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset(as_ids(self.eos_token_id))

    def processor(
        self, prompt_length: int, max_new_tokens: int, source: Sequence[int] | None, device: torch.device
    ) -> Callable[[Sequence[int], Tensor], Tensor] | None:
        """The score processors of one row, in transformers' order, or None if there are none.

        Args:
            prompt_length: decoder tokens before the first new one.
            max_new_tokens: longest continuation of this row.
            source: what the penalties of the source look at: encoder input ids, the prompt of a decoder-only model.
            device: where the scores are.

        Raises:
            InputError: a value that a processor does not take.
        """
        try:
            chain = LogitsProcessorList(processors_of(self, prompt_length, max_new_tokens, source, device))
        except (TypeError, ValueError) as error:
            raise InputError(f"an option of the scores cannot be used: {one_line(error)}") from None
        return process_with(chain, lambda prefix: torch.tensor([list(prefix)], device=device))

    def warp(self) -> Callable[[Tensor], Tensor] | None:
        """What shapes a draw, in transformers' order, as one function of ``logits`` ``[N, V]``, or None."""
        try:
            return warp_with(LogitsProcessorList(warpers_of(self)))
        except (TypeError, ValueError) as error:
            raise InputError(f"an option of the draws cannot be used: {one_line(error)}") from None

    def choice(self) -> Choice:
        """How a model picks its next token."""
        return Sampling(self.warp()) if self.do_sample else Greedy()

    def seed_of(self, index: int) -> int | None:
        """The seed of a call's row."""
        if self.seed is None:
            return None
        if not isinstance(self.seed, Sequence):
            return fold(int(self.seed), index)
        if index >= len(self.seed):
            raise InputError(f"{len(self.seed)} seeds for more inputs; give one a row, or a single number")
        return int(self.seed[index])

    def check_seeds(self, rows: int) -> None:
        """Whether there are no more seeds than rows, of which some would decide nothing.

        Raises:
            InputError: there are.
        """
        if isinstance(self.seed, Sequence) and len(self.seed) > rows:
            raise InputError(f"{len(self.seed)} seeds for {rows} texts; give one a row, or a single number")


def _plain(value: Any) -> Any:
    """Tensors, arrays, sets and their numbers as JSON knows them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


def _check_draws(asked: Mapping[str, Any]) -> None:
    """Refuse what shapes draws where none are made: it would change nothing."""
    idle = [name for name in (*DRAWS, "seed") if name in asked and asked[name] != DRAWS.get(name)]
    if idle and not asked.get("do_sample"):
        # A value that is out of range in any case is said to be so first.
        GenerationOptions(do_sample=True, **{name: asked[name] for name in idle})
        raise InputError(f"{idle[0]} shapes draws, and this call draws nothing; set do_sample, or leave {idle[0]} out")


def _check_beams(asked: Mapping[str, Any]) -> None:
    """Refuse what shapes a beam search where there is none: it would change nothing."""
    idle = [name for name in ("length_penalty", "early_stopping") if name in asked]
    if idle and asked.get("num_beams", 1) == 1:
        raise InputError(f"{idle[0]} shapes a beam search, and this call has none; set num_beams, or leave it out")


LEAST_TEMPERATURE = 1e-30
"""Scores that are divided by less are infinite in 32 bits."""
DRAWS: dict[str, float | None] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
"""Options that shape draws, and the value that leaves them as they are."""


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _is_float(value: Any) -> bool:
    """Whether it is no whole number beyond all floats."""
    try:
        float(value)
    except OverflowError:
        return False
    return True


RANGES: list[tuple[str, str, Callable[[Any], bool]]] = [
    ("max_new_tokens", "1 or more, a whole number", _whole(1)),
    ("max_length", "1 or more, a whole number", _whole(1)),
    ("min_new_tokens", "0 or more, a whole number", _whole(0)),
    ("min_length", "0 or more, a whole number", _whole(0)),
    (
        "temperature",
        f"more than 0, and {LEAST_TEMPERATURE:g} or more (for the likeliest token leave it and do_sample out)",
        lambda v: v >= LEAST_TEMPERATURE and _is_float(v),
    ),
    ("top_k", "0 (all) or more, a whole number", _whole(0)),
    ("top_p", "more than 0, at most 1", lambda v: 0 < v <= 1),
    ("min_p", "0 to 1", lambda v: 0 <= v <= 1),
    ("top_h", "more than 0, at most 1", lambda v: 0 < v <= 1),
    ("typical_p", "more than 0, at most 1", lambda v: 0 < v <= 1),
    ("epsilon_cutoff", "0 (off) or more, below 1", lambda v: 0 <= v < 1),
    ("eta_cutoff", "0 (off) or more, below 1", lambda v: 0 <= v < 1),
    ("repetition_penalty", "more than 0", lambda v: v > 0 and _is_float(v)),
    ("encoder_repetition_penalty", "more than 0", lambda v: v > 0 and _is_float(v)),
    ("no_repeat_ngram_size", "0 (off) or more, a whole number", _whole(0)),
    ("encoder_no_repeat_ngram_size", "0 (off) or more, a whole number", _whole(0)),
    ("decoder_start_token_id", "one token id", _whole(0)),
    ("logprobs", "0 or more, a whole number", _whole(0)),
    ("num_beams", "1 (none) or more, a whole number", _whole(1)),
    (
        "length_penalty",
        f"a finite number, -{Beams.MOST_PENALTY} to {Beams.MOST_PENALTY}",
        lambda v: abs(v) <= Beams.MOST_PENALTY,
    ),
    ("early_stopping", "True, False or 'never'", lambda v: v is True or v is False or v == "never"),
]
