"""The score processors that options stand for, in transformers' order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.logits_process import TopHLogitsWarper

from bild.errors import InputError

if TYPE_CHECKING:
    from bild.generation.options import GenerationOptions


def processors_of(
    asked: GenerationOptions,
    prompt_length: int,
    max_new_tokens: int,
    source: Sequence[int] | None,
    device: torch.device,
) -> list[Any]:
    """What forbids, forces and penalises tokens of one row, for both models.

    Args:
        asked: options of the call.
        prompt_length: decoder tokens before the first new one.
        max_new_tokens: longest continuation of this row.
        source: what the penalties of the source look at: encoder input ids, the prompt of a decoder-only model.
        device: where the scores are.
    """
    eos = sorted(asked.eos_token_ids)
    place: Any = device
    chain: list[Any] = []

    def ids() -> Any:
        return torch.tensor([list(source or ())], device=place)

    if asked.sequence_bias:
        chain.append(SequenceBiasLogitsProcessor(biases_of(asked.sequence_bias)))
    if asked.encoder_repetition_penalty not in (None, 1.0) and source is not None:
        chain.append(EncoderRepetitionPenaltyLogitsProcessor(float(asked.encoder_repetition_penalty), ids()))
    if asked.repetition_penalty not in (None, 1.0):
        chain.append(RepetitionPenaltyLogitsProcessor(float(asked.repetition_penalty)))
    if asked.no_repeat_ngram_size:
        chain.append(NoRepeatNGramLogitsProcessor(asked.no_repeat_ngram_size))
    if asked.encoder_no_repeat_ngram_size and source is not None:
        chain.append(EncoderNoRepeatNGramLogitsProcessor(asked.encoder_no_repeat_ngram_size, ids()))
    if asked.bad_words_ids:
        chain.append(NoBadWordsLogitsProcessor([list(word) for word in asked.bad_words_ids], eos or None))
    # As transformers has it, the more special of the two counts, 0 too.
    if asked.min_length and asked.min_new_tokens is None and eos:
        chain.append(MinLengthLogitsProcessor(asked.min_length, eos, device=place))
    if asked.min_new_tokens and eos:
        chain.append(MinNewTokensLengthLogitsProcessor(prompt_length, asked.min_new_tokens, eos, device=place))
    if asked.forced_bos_token_id is not None:
        chain.append(ForcedBOSTokenLogitsProcessor(asked.forced_bos_token_id))
    if asked.forced_eos_token_id is not None:
        longest = prompt_length + max_new_tokens
        chain.append(ForcedEOSTokenLogitsProcessor(longest, as_ids(asked.forced_eos_token_id), device=place))
    if asked.remove_invalid_values:
        chain.append(InfNanRemoveLogitsProcessor())
    if asked.exponential_decay_length_penalty and eos:
        start, factor = asked.exponential_decay_length_penalty
        chain.append(ExponentialDecayLengthPenalty((start, factor), eos, prompt_length))
    if asked.suppress_tokens:
        chain.append(SuppressTokensLogitsProcessor(list(asked.suppress_tokens), device=place))
    if asked.begin_suppress_tokens:
        forced = prompt_length == 1 and asked.forced_bos_token_id is not None
        begin = prompt_length + 1 if forced else prompt_length
        chain.append(SuppressTokensAtBeginLogitsProcessor(list(asked.begin_suppress_tokens), begin, device=place))
    return chain


def warpers_of(asked: GenerationOptions) -> list[Any]:
    """What shapes a draw."""
    chain: list[Any] = []
    # As in transformers, a beam search has a token that does not end the text.
    least = max(2, 1 + len(as_ids(asked.eos_token_id))) if asked.searches else 1
    if asked.temperature not in (None, 1.0):
        chain.append(TemperatureLogitsWarper(float(asked.temperature)))
    if asked.top_h is not None:
        chain.append(TopHLogitsWarper(asked.top_h))
    if asked.top_k:
        chain.append(TopKLogitsWarper(asked.top_k, min_tokens_to_keep=least))
    if asked.top_p not in (None, 1.0):
        chain.append(TopPLogitsWarper(asked.top_p, min_tokens_to_keep=least))
    if asked.min_p:
        chain.append(MinPLogitsWarper(asked.min_p, min_tokens_to_keep=least))
    if asked.typical_p not in (None, 1.0):
        chain.append(TypicalLogitsWarper(asked.typical_p, min_tokens_to_keep=least))
    if asked.epsilon_cutoff:
        chain.append(EpsilonLogitsWarper(asked.epsilon_cutoff, min_tokens_to_keep=least))
    if asked.eta_cutoff:
        chain.append(EtaLogitsWarper(asked.eta_cutoff, min_tokens_to_keep=least))
    return chain


def biases_of(given: Sequence[Any] | Mapping[tuple[int, ...], float] | None) -> list[Any]:
    """Pairs of a token sequence and what is added to its score, however they were written.

    Raises:
        InputError: they are no such pairs.
    """
    try:
        pairs = given.items() if isinstance(given, Mapping) else ([] if given is None else given)
        return [[list(tokens), float(bias)] for tokens, bias in pairs]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"sequence_bias is {given!r}; allowed are pairs as in [[[5, 6], -2.0]]") from None


def as_ids(value: int | Sequence[int] | None) -> list[int]:
    """One token id, several or none as a list."""
    if value is None:
        return []
    # NumPy's and torch's numbers and lists are read like Python's.
    plain: Any = value.tolist() if hasattr(value, "tolist") else value
    ids: list[Any] = list(plain) if isinstance(plain, Iterable) and not isinstance(plain, str) else [plain]
    return ids
