"""CALM as a method: ``calm:threshold=0.9:decay=4:confidence=state``."""

from __future__ import annotations

import copy
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from bild.decoding import Policy
from bild.errors import InputError
from bild.evaluation.method import LAYERS_RUN, TOKENS_READ, MethodSpec, Output
from bild.evaluation.own import DRAW_OPTIONS, PolicyMethod

if TYPE_CHECKING:
    from bild.generation import BigLittleDecoder
    from bild.generation.inputs import Conversation
    from bild.models import ExitRule

NAME = "calm"
DTYPE = "dtype"


class CalmMethod(PolicyMethod):
    """The large model of a decoder, alone, its tokens leaving early.

    Args:
        name: as the user wrote it.
        decoder: loaded; may be shared with other methods.
        rule: when a token leaves.
        options: of the decoder's ``generate``.

    Raises:
        LoadError: another architecture.
    """

    def __init__(self, name: str, decoder: BigLittleDecoder, rule: ExitRule, options: dict[str, Any]) -> None:
        from bild.models import CalmModel

        own, large = copy.copy(decoder), CalmModel(decoder.large.network, rule)
        large.vocab_size = decoder.large.vocab_size
        own.large = large
        details = {"rule": asdict(rule), "num_layers": len(large.layers), "runtime": "eager"}
        super().__init__(name, own, Policy.large(), options, details)
        self._exits = large.exits

    def __call__(self, source: str | Conversation) -> Output:
        """Decode one text; counts the layers that ran."""
        self._exits.clear()
        output = super().__call__(source)
        layers = sum(layer * count for layer, count in self._exits.items())
        return replace(output, counts={LAYERS_RUN: layers, TOKENS_READ: self._exits.total()})


def rule_of(spec: MethodSpec, max_new_tokens: int) -> ExitRule:
    """The rule a method names.

    Args:
        spec: options are the fields of :class:`~bild.models.ExitRule`, ``dtype``, and how tokens are drawn.
        max_new_tokens: what ``max_tokens`` means where it is not given.

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    from bild.models import ExitRule

    defaults: dict[str, Any] = {field.name: field.default for field in fields(ExitRule)}
    defaults["max_tokens"] = max_new_tokens
    allowed = (*defaults, DTYPE, *DRAW_OPTIONS)
    unknown = [key for key in spec.options if key not in allowed]
    if unknown:
        raise InputError(f"method {spec.text!r}: unknown option {unknown[0]}; allowed are {', '.join(allowed)}")
    given = {key: spec.value(key, type(default)) for key, default in defaults.items() if key in spec.options}
    try:
        return ExitRule(**defaults | given)
    except InputError as error:
        raise InputError(f"method {spec.text!r}: {error}") from None
