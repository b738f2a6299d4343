"""Our own methods: a policy on a loaded pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bild.decoding import parse_option, preset_options
from bild.errors import InputError
from bild.evaluation.method import MethodSpec, Output

if TYPE_CHECKING:
    from torch import Tensor

    from bild.decoding import Policy
    from bild.generation import BigLittleDecoder

RUN_OPTIONS = ("runtime", "dtype")
"""How a decoder is loaded, in place of the command's own."""
DRAW_OPTIONS: dict[str, type[float] | type[int]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "seed": int,
}
"""How tokens are drawn; a method that is given any of them samples."""


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

    def __call__(self, source: str) -> Output:
        assert self._decoder is not None, "closed"
        from bild.generation.seeds import digest_of, fold

        options, seed = self.options, self.options.get("seed")
        if seed is not None:
            # By the text, not by the order: a run that was killed goes on with the same draws.
            options = options | {"seed": fold(seed, digest_of(source))}
        (result,) = self._decoder.generate([source], self.policy, **options)
        return Output(result.text, result.token_ids, ttft_s=result.ttft_s, stats=result.stats)

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
    known = (*allowed, *RUN_OPTIONS, *DRAW_OPTIONS)
    for key in spec.options:
        if key not in known:
            raise InputError(f"method {spec.text!r}: unknown option {key}; allowed are {', '.join(known)}")
    try:
        return own.named(
            spec.name, **{key: parse_option(key, spec.options[key]) for key in allowed if key in spec.options}
        )
    except ValueError as error:
        raise InputError(f"method {spec.text!r}: {error}") from None


def draw_options_of(spec: MethodSpec) -> dict[str, Any]:
    """Options of ``generate`` that make a method sample; none where it is greedy.

    Raises:
        InputError: a value that is no number.
    """
    options = {key: spec.value(key, kind) for key, kind in DRAW_OPTIONS.items() if key in spec.options}
    return {"do_sample": True, **options} if options else {}


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
