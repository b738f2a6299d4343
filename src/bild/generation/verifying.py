"""The verifier's side of a pair that is on two machines: what it says of itself, and rows of what devices open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bild.decoding import Choice, Policy, Request, Row, Rules
from bild.edge.numbers import at_verifier, check_rule
from bild.edge.wire import KINDS, PROBE, PROTOCOL, Opening, compact, digest
from bild.errors import InputError, TooLongError, VocabularyError
from bild.generation.options import GenerationOptions
from bild.models import Model
from bild.models.compiled.compiling import digest_of_weights
from bild.models.parts import encoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bild.generation.decoder import BigLittleDecoder

CHOICES = 256
"""Ways of drawing that are remembered, so that rows of one kind are judged together."""


def digest_of(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """Of a tokenizer's vocabulary; None where there is none."""
    return None if tokenizer is None else digest(tokenizer.get_vocab())


def probed(tokenizer: PreTrainedTokenizerBase | None) -> list[int] | None:
    """How a tokenizer reads a text that is the same everywhere."""
    return None if tokenizer is None else [int(id) for id in tokenizer(PROBE).input_ids]


def describe(decoder: BigLittleDecoder, name: str) -> dict[str, Any]:
    """What a device is told of the large model: all that its tokens depend on, but no weight.

    Args:
        decoder: holds the large model.
        name: of it, for the reader.
    """
    large, tokenizer = decoder.large, decoder.tokenizer
    logits = torch.promote_types(large.dtype, torch.float32)
    told = {
        "protocol": PROTOCOL,
        "model": name,
        "dtype": decoder.dtype,
        "logits": next(name for name, kind in KINDS.items() if kind == logits),
        "vocab_size": large.vocab_size,
        "max_positions": large.max_positions,
        "max_source_positions": large.max_source_positions,
        "vocabulary": digest_of(tokenizer),
        "probe": probed(tokenizer),
        "chat_template": getattr(tokenizer, "chat_template", None),
        "config": _plain(large.config.to_dict()),
        "generation_config": _plain(decoder.generation_config.to_dict()),
    }
    # Whatever it is called, another model has other weights, or is said to be another.
    identity = hashlib.sha256(compact({**told, "model": None}) + digest_of_weights(large.network))
    return told | {"identity": identity.hexdigest()[:16]}


def check_vocabulary(own: str | None, other: Any) -> None:
    """Whether a device has the verifier's vocabulary.

    Args:
        own: digest of the verifier's; None: it has no tokenizer, so that sizes have to do.
        other: what the device sent.

    Raises:
        VocabularyError: it has not.
    """
    if own is not None and other is not None and own != other:
        raise VocabularyError(
            f"the small model's vocabulary is another one than the verifier's (digests {str(other)[:8]} and "
            f"{own[:8]}); use two checkpoints with the same tokenizer"
        )


@dataclass(frozen=True)
class Texts:
    """Makes rows of what devices open.

    Args:
        model: the large one.
    """

    model: Model

    def row(self, opening: Opening) -> tuple[Sequence[int], Row]:
        """A text's source and its row.

        Raises:
            InputError: a rule or an option that cannot be used here.
        """
        model = self.model
        if bool(opening.source) != model.is_encoder_decoder:
            kind = "reads a source" if model.is_encoder_decoder else "has no encoder"
            raise InputError(f"the verifier's model {kind}, and the text {'has one' if opening.source else 'has none'}")
        for what, count, most in (
            ("source tokens", len(opening.source), model.max_source_positions),
            ("tokens", len(opening.prompt) + opening.max_new_tokens, model.max_positions),
        ):
            if most is not None and count > most:
                raise TooLongError(f"the text can have {count} {what}; the verifier's model places at most {most}")
        if opening.source:
            known = encoder_of(model.network).get_input_embeddings().num_embeddings
            if max(opening.source) >= known:
                raise InputError(f"source holds token id {max(opening.source)}; allowed is 0 to {known - 1}")
        with _of_options():
            asked = GenerationOptions(**opening.options)
            asked.check_ids(model.vocab_size)
            process, choice = self._process(opening, asked), _choice(compact(dict(opening.options)))
        request = Request(
            prompt=opening.prompt,
            max_new_tokens=opening.max_new_tokens,
            process=process,
            generator=None if opening.seed is None else torch.Generator().manual_seed(opening.seed),
        )
        if choice.draws and opening.seed is None:
            raise InputError("the text is drawn, and has no seed; give one")
        row = Row(0, request, Rules(_policy(dict(opening.acceptance)), choice))
        row.tokens += opening.text
        row.committed = len(row.tokens)
        return opening.source, row

    def _process(self, opening: Opening, asked: GenerationOptions) -> Callable[[Sequence[int], Tensor], Tensor] | None:
        looked_at = list(opening.source if self.model.is_encoder_decoder else opening.prompt)
        own = asked.processor(len(opening.prompt), opening.max_new_tokens, looked_at, self.model.device)
        shared = opening.vocab_size
        if shared == self.model.vocab_size:
            return own

        def process(prefix: Sequence[int], logits: Tensor) -> Tensor:
            # Ids that only this model's head has are never written.
            known = logits[:shared] if own is None else own(prefix, logits[:shared])
            return torch.cat([known, torch.full_like(logits[shared:], -torch.inf)])

        return process


@contextmanager
def _of_options() -> Iterator[None]:
    """Whatever a stranger's options make others raise is one line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"options hold something that cannot be used: {error}") from None
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise InputError(f"options hold something that is none ({type(error).__name__})") from None


@lru_cache(CHOICES)
def _choice(options: bytes) -> Choice:
    return GenerationOptions(**json.loads(options)).choice()


def _policy(acceptance: dict[str, Any]) -> Policy:
    try:
        policy = Policy.from_dict({"acceptance": acceptance, "verify_end": True})
    except (ValueError, TypeError) as error:
        raise InputError(f"acceptance is none that is known here ({error})") from None
    check_rule(policy.acceptance)
    return Policy(acceptance=at_verifier(policy.acceptance), verify_end=True)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold of a configuration; functions and tensors in it are nobody's business."""
    return {str(key): value for key, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
