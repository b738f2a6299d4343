"""Our own methods: a policy on a loaded pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bild.data.json_text import to_json
from bild.decoding import parse_option, preset_options, searches
from bild.decoding.drafters.recipe import SEVERAL
from bild.errors import InputError
from bild.evaluation.method import MethodSpec, Output

if TYPE_CHECKING:
    from torch import Tensor

    from bild.decoding import Policy
    from bild.generation import BigLittleDecoder
    from bild.generation.inputs import Conversation

RUN_OPTIONS = ("runtime", "dtype")
"""How a decoder is loaded, in place of the command's own."""
DRAFTER = "drafter"
"""Who drafts, in place of the command's own; see :func:`drafter_of`."""
DRAW_OPTIONS: dict[str, type[float] | type[int]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "seed": int,
}
"""How tokens are drawn; a method that is given any of them samples."""
SEARCH_OPTIONS: dict[str, type[float] | type[int]] = {"num_beams": int, "length_penalty": float}
"""How texts are searched; a method that is given beams does so."""


class PolicyMethod:
    """One policy of a decoder as a method.

    Args:
        name: as the user wrote it.
        decoder: loaded; may be shared with other methods.
        policy: how the two models decode together.
        options: of the decoder's ``generate``.
        details: for the reader of the report.
    """

    def __init__(
        self,
        name: str,
        decoder: BigLittleDecoder,
        policy: Policy,
        options: dict[str, Any],
        details: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.policy, self.options = name, policy, options
        self._decoder: BigLittleDecoder | None = decoder
        self.weight_bytes: int | None = _weight_bytes(decoder, policy)
        device, dtype = str(decoder.large.device), decoder.dtype
        given = {} if details is None else details
        self.details = {"policy": policy.to_dict(), "device": device, "dtype": dtype} | given

    def __call__(self, source: str | Conversation) -> Output:
        from bild.generation.seeds import digest_of, fold

        options, seed = self.options, self.options.get("seed")
        if seed is not None:
            # By the text, not by the order: a run that was killed goes on with the same draws.
            text = source if isinstance(source, str) else to_json([dict(turn) for turn in source])
            options = options | {"seed": fold(seed, digest_of(text))}
        (result,) = self.decoder.generate([source], self.policy, **options)
        return Output(result.text, result.token_ids, ttft_s=result.ttft_s, stats=result.stats)

    @property
    def decoder(self) -> BigLittleDecoder:
        """What it decodes with, until it is closed."""
        assert self._decoder is not None, "closed"
        return self._decoder

    def close(self) -> None:
        self._decoder = None


def policy_of(spec: MethodSpec, own: Policy) -> Policy:
    """The policy a method names.

    Args:
        spec: its preset and thresholds.
        own: the pair's own policy: what ``bild`` means, and where thresholds not given come from.

    Raises:
        InputError: an option the preset does not have, or a value out of range.
    """
    allowed = preset_options(spec.name)
    known = (*allowed, *RUN_OPTIONS, DRAFTER, *DRAW_OPTIONS, *SEARCH_OPTIONS)
    for key in spec.options:
        if key not in known:
            raise InputError(f"method {spec.text!r}: unknown option {key}; allowed are {', '.join(known)}")
    try:
        policy = own.named(
            spec.name, **{key: parse_option(key, spec.options[key]) for key in allowed if key in spec.options}
        )
    except ValueError as error:
        raise InputError(f"method {spec.text!r}: {error}") from None
    if spec.options.get("num_beams", "1") != "1" and not searches(policy):
        raise InputError(f"method {spec.text!r}: beams go with large, small and exact; take one of them")
    return policy


def writing_options_of(spec: MethodSpec) -> dict[str, Any]:
    """Options of ``generate`` that make a method sample or search; none where it is greedy.

    Raises:
        InputError: a value that is no number.
    """
    draws, search = (
        {key: spec.value(key, kind) for key, kind in options.items() if key in spec.options}
        for options in (DRAW_OPTIONS, SEARCH_OPTIONS)
    )
    return {**({"do_sample": True, **draws} if draws else {}), **search}


def drafter_of(spec: MethodSpec) -> str | None:
    """Who drafts for a method, None where it does not say.

    Colons and commas separate methods and their keys, so ``@`` stands for the one and ``+`` for the other:
    ``ngram@window=8``, ``bandit@ngram+small``; ``ngram+small`` is short for ``first@ngram+small``.

    Raises:
        InputError: there is no such drafter.
    """
    if DRAFTER not in spec.options:
        return None
    from bild.generation.drafting import maker_of

    text = spec.options[DRAFTER].replace("@", ":").replace("+", ",")
    several = "," in text and text.partition(":")[0] not in SEVERAL
    named = f"first:{text}" if several else text
    try:
        maker_of(named)
    except InputError as error:
        raise InputError(f"method {spec.text!r}: {error}") from None
    return named


def _weight_bytes(decoder: BigLittleDecoder, policy: Policy) -> int:
    models = decoder.parts if policy.alone is None else [getattr(decoder, policy.alone)]
    networks = [model.network for model in models]
    # A quantized layer may hold its weights as buffers; an early exit shares those of the large model.
    held = {id(held): held for network in networks for held in (*network.parameters(), *network.buffers())}
    return sum(_tensor_bytes(tensor) for tensor in held.values())


def _tensor_bytes(tensor: Tensor) -> int:
    """Bytes held; a quantized weight is made of several tensors and only pretends to its old size."""
    if hasattr(tensor, "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()
        return sum(_tensor_bytes(getattr(tensor, name)) for name in inner)
    return int(tensor.numel() * tensor.element_size())
