"""The device's side of a pair that is on two machines: the large model as it is known from afar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bild.decoding import Maker, Policy, Recipe, RejectionSampling, Scorer
from bild.edge.connection import Channel, Connection
from bild.edge.numbers import check_rule
from bild.edge.remote import RemoteVerifier, Terms
from bild.edge.wire import DESCRIBE, KINDS, PROTOCOL
from bild.engine import Job
from bild.errors import InputError, VerifierError, VocabularyError
from bild.generation.middle import SMALL
from bild.generation.pair import Pair, choose_pair
from bild.generation.verifying import check_vocabulary, digest_of, probed
from bild.models import Model, check_kinds, is_part


class RemoteModel:
    """A large model that is elsewhere: everything about it but its passes. See :class:`~bild.models.Model`.

    Args:
        url: where it is.
        config: of its network.
        facts: what its verifier says of it.
        device: of the small model, where token ids are put here.
    """

    is_compiled, batches, stands_alone = False, True, True

    def __init__(self, url: str, config: PreTrainedConfig, facts: _Facts, device: torch.device) -> None:
        self.url, self.config, self.device = url, config, device
        self.dtype = facts.logits
        self.vocab_size = facts.vocab_size
        self.is_encoder_decoder = bool(config.is_encoder_decoder)
        self.max_positions, self.max_source_positions = facts.max_positions, facts.max_source_positions

    @property
    def network(self) -> Any:
        """There is none here.

        Raises:
            InputError: always.
        """
        self._refuse()

    @network.setter
    def network(self, value: PreTrainedModel) -> None:
        self._refuse()

    def start(self, sources: Sequence[Sequence[int]], encoded: Sequence[Tensor] | None = None) -> Scorer:
        """Not here; see :attr:`network`."""
        self._refuse()

    def beside(self, large: Scorer, sources: Sequence[Sequence[int]]) -> Scorer:
        """Not here; see :attr:`network`."""
        self._refuse()

    def is_current(self) -> bool:
        """Nothing of it can change here."""
        return True

    def _refuse(self) -> NoReturn:
        raise InputError(f"the large model is at {self.url}, and this needs it here; load it without verifier=…")


@dataclass(frozen=True)
class Elsewhere:
    """A verifier that this pair and its own have agreed with.

    Args:
        channel: to it.
        model: the large one, as it is known here.
        generation_config: the large checkpoint's.
        terms: of the agreement.
    """

    channel: Channel
    model: RemoteModel
    generation_config: GenerationConfig
    terms: Terms

    def __call__(self, jobs: Sequence[Job]) -> RemoteVerifier:
        """What judges these rows."""
        return RemoteVerifier.of(self.channel, self.terms, jobs)

    def check(self, policy: Policy, drafter: Maker) -> None:
        """Whether a call's rules can be kept from afar.

        Raises:
            InputError: a rule that needs the small model's distributions at the verifier.
        """
        if policy.alone is not None:
            return
        check_rule(policy.acceptance)
        overlaps = isinstance(drafter, Recipe) and drafter.options.get("reward") == "overlap"
        if overlaps and isinstance(policy.acceptance, RejectionSampling):
            raise InputError(
                "drafter bandit with reward=overlap compares distributions, which a verifier elsewhere is not told; "
                "take reward=accepted or speed"
            )


def connect(
    verifier: str | Channel, small: Model, tokenizer: PreTrainedTokenizerBase | None, timeout_s: float
) -> Elsewhere:
    """Agree with a verifier.

    Args:
        verifier: its address, or what brings requests to it.
        small: the small model, which is here; its vocabulary becomes the shared one.
        tokenizer: of the small model, which reads and writes all text here; it gets the large one's chat template.
        timeout_s: longest wait for an answer, in seconds.

    Raises:
        InputError: no such address.
        LoadError: two kinds of model.
        VerifierError: it cannot be reached, or is none.
        VocabularyError: it is a verifier of another pair.
    """
    channel: Channel = Connection(verifier, timeout_s) if isinstance(verifier, str) else verifier
    told = channel.send(DESCRIBE)
    facts = _Facts.read(told, channel.url)
    config, generation_config = _configs(told, channel.url)
    check_kinds(config, small.config)
    check_vocabulary(facts.vocabulary, digest_of(tokenizer))
    if None in (facts.vocabulary, tokenizer) and facts.vocab_size != small.vocab_size:
        raise VocabularyError(
            f"the verifier's head has {facts.vocab_size} rows and the small model's {small.vocab_size}, and there are "
            "not two tokenizers to compare; add the tokenizer to both folders"
        )
    if tokenizer is not None and facts.vocabulary is not None:
        if facts.probe != probed(tokenizer):
            raise InputError(
                f"the tokenizers have one vocabulary but read a text differently (at {channel.url} and here); use the "
                "large checkpoint's tokenizer here"
            )
        tokenizer.chat_template = facts.chat_template
    shared = min(facts.vocab_size, small.vocab_size)
    model = RemoteModel(channel.url, config, facts, small.device)
    terms = Terms(shared, digest_of(tokenizer), facts.logits, facts.identity)
    return Elsewhere(channel, model, generation_config, terms)


def only_small(large: object, small: Any, middle: object, experts: Sequence[object]) -> PreTrainedModel:
    """The network that is here.

    Raises:
        InputError: there is more than the small one here, or not even that.
    """
    if large is not None or experts:
        raise InputError("large is named, and the large model is where verifier says; leave one of them out")
    if not isinstance(small, PreTrainedModel):
        said = "is missing" if small is None else f"is {small!r}, a part of the large model, which is elsewhere"
        raise InputError(f"small {said}; a device with a verifier needs a small checkpoint of its own")
    if middle not in (None, SMALL):
        raise InputError(
            "a model in between is here only where it is the small one; with verifier, middle can be 'small'"
        )
    return small


def choose_small(
    pair: Any, large: Any, small: Any, drafter: str | Maker | None, middle: Any, middle_window: int | None
) -> Pair:
    """The pair that these names stand for, as far as it is here: its small checkpoint stands on both sides.

    Raises:
        InputError: see :func:`only_small`.
        LoadError: no pair there.
    """
    if large is not None:
        raise InputError("large is named, and the large model is where verifier says; leave one of them out")
    alone = small if pair is None else None
    chosen = choose_pair(pair, alone, small, drafter, middle, middle_window)
    name = chosen.small
    if name is None or is_part(name):
        said = "is missing" if name is None else f"is {name!r}, a part of the large model, which is elsewhere"
        raise InputError(f"small {said}; a device with a verifier needs a small checkpoint of its own")
    if chosen.middle not in (None, SMALL):
        raise InputError(
            f"middle is {chosen.middle!r}, and the large model is elsewhere; with verifier, middle can be 'small'"
        )
    return replace(chosen, large=name)


@dataclass(frozen=True)
class _Facts:
    """What a verifier says of its model, as far as it is numbers and names."""

    vocab_size: int
    logits: torch.dtype
    vocabulary: str | None
    probe: list[int] | None
    chat_template: Any
    max_positions: int | None
    max_source_positions: int | None
    identity: str | None

    @classmethod
    def read(cls, told: Any, url: str) -> _Facts:
        if not isinstance(told, dict) or told.get("protocol") != PROTOCOL:
            known = told.get("protocol") if isinstance(told, dict) else None
            said = (
                f"speaks protocol {known}, this device {PROTOCOL}" if known is not None else "is no bild verify-server"
            )
            raise VerifierError(f"what answers at {url} {said}; run the same version of bild on both")
        try:
            return cls(
                _whole(told["vocab_size"]),
                KINDS[told["logits"]],
                _or_none(str, told["vocabulary"]),
                _or_none(list, told["probe"]),
                told["chat_template"],
                _or_none(_whole, told["max_positions"]),
                _or_none(_whole, told["max_source_positions"]),
                _or_none(str, told.get("identity")),
            )
        except (KeyError, TypeError, ValueError):
            raise VerifierError(f"the verifier at {url} says of itself what cannot be; look at its version") from None


def _configs(told: dict[str, Any], url: str) -> tuple[PreTrainedConfig, GenerationConfig]:
    try:
        values = dict(told["config"])
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        return config, GenerationConfig.from_dict(told["generation_config"])
    except Exception as error:  # transformers raises what it likes of configurations
        raise VerifierError(
            f"the verifier at {url} has a model that is not known here ({type(error).__name__}); "
            "install the same version of transformers on both"
        ) from None


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("no count")
    return value


def _or_none(kind: Any, value: Any) -> Any:
    return None if value is None else kind(value)
