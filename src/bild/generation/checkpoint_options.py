"""What a checkpoint's generation config may ask for, field by field: applied, another way of running, or refused."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from transformers import GenerationConfig

from bild.errors import InputError

logger = logging.getLogger("bild")

DEFAULTS: Any = GenerationConfig()
"""What transformers' own config says where nobody said anything."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "token_healing": ((False,), "it rewrites the end of the prompt"),
    "guidance_scale": ((1, 1.0), "it runs the large model a second time for every token"),
    "watermarking_config": ((), "a watermark would have to be put on both models' scores after they are compared"),
    "constraints": ((), "it needs a constrained beam search"),
    "force_words_ids": ((), "it needs a constrained beam search"),
    "max_time": ((), "texts would depend on how fast the machine is"),
}
"""Fields that change the text in a way this loop cannot: values that ask for nothing, and why it cannot."""

_SEARCH = "texts are greedy, drawn, or found by beams"
PASSED_OVER: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beam_groups": ((1,), _SEARCH),
    "diversity_penalty": ((0.0,), _SEARCH),
    "penalty_alpha": ((0.0,), _SEARCH),
    "dola_layers": ((), _SEARCH),
    "num_return_sequences": ((1,), "one text is written for each input, unless generate is asked for more"),
}
"""Fields of other searches and of more texts, that a checkpoint may recommend: values that ask for nothing, and what is
done instead."""

WITHOUT_EFFECT: dict[str, str] = {
    "low_memory": "contrastive search only",
    "renormalize_logits": "neither the likeliest token nor a draw changes",
    "use_cache": "how transformers runs",
    "cache_implementation": "how transformers runs",
    "cache_config": "how transformers runs",
    "max_cache_len": "how transformers runs",
    "compile_config": "how transformers runs",
    "disable_compile": "how transformers runs",
    "continuous_batching_config": "how transformers runs",
    "prefill_chunk_size": "how transformers runs",
    "output_attentions": "what is returned beside the text",
    "output_hidden_states": "what is returned beside the text",
    "output_scores": "what is returned beside the text",
    "output_logits": "what is returned beside the text",
    "return_dict_in_generate": "what is returned beside the text",
    "pad_token_id": "rows are not padded here; inputs are freed of it",
    "bos_token_id": "the decoder start where none is named",
    "use_mtp": "transformers' own drafts",
    "is_assistant": "transformers' own drafts",
    "num_assistant_tokens": "transformers' own drafts",
    "num_assistant_tokens_schedule": "transformers' own drafts",
    "assistant_confidence_threshold": "transformers' own drafts",
    "prompt_lookup_num_tokens": "transformers' own drafts",
    "max_matching_ngram_size": "transformers' own drafts",
    "assistant_early_exit": "transformers' own drafts",
    "assistant_lookbehind": "transformers' own drafts",
    "target_lookbehind": "transformers' own drafts",
    "assistant_ensemble_weight": "transformers' own drafts",
    "speculation_type": "transformers' own drafts",
    "_from_model_config": "where the config comes from",
    "transformers_version": "where the config comes from",
}
"""Fields that do not change the text of greedy decoding or of draws, and why."""


def check_names(asked: Mapping[str, Any], names: Sequence[str]) -> None:
    """Whether these options exist.

    Args:
        asked: options of a call.
        names: those there are.

    Raises:
        InputError: one does not, and what may have been meant.
    """
    for name in asked:
        if name in names:
            continue
        if name in REFUSED:
            raise InputError(f"{name} is not available: {REFUSED[name][1]}; leave it out")
        if name in PASSED_OVER:
            raise InputError(f"{name} is not available here: {PASSED_OVER[name][1]}; leave it out")
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; allowed are {', '.join(names)}"
        raise InputError(f"unknown option {name!r}{hint}")


def check_config(config: GenerationConfig, applied: Sequence[str], asked: Mapping[str, Any]) -> None:
    """Whether everything a checkpoint's config asks for is done, or is another way to the same text.

    Another search (beams), or several texts of an input, is passed over with a warning unless the call asks for one:
    the checkpoint recommends it, and greedy decoding of the same model is what was asked for.

    Args:
        config: of the large checkpoint.
        applied: fields that are applied.
        asked: options of the call.

    Raises:
        InputError: a field that would change the text and cannot be applied.
    """
    for name, (idle, reason) in REFUSED.items():
        if _asks(config, name, idle):
            raise InputError(
                f"the checkpoint's generation config sets {name}, which is not available here: {reason}; "
                f"set generation_config.{name} to None to do without"
            )
    for name, (idle, instead) in PASSED_OVER.items():
        if _asks(config, name, idle):
            _warn(_recommended(config, name, instead))
    if "num_beams" not in asked and _asks(config, "num_beams", (1,)):
        _warn(_recommended(config, "num_beams", "texts are greedy unless a call asks for it"))
    known = {*applied, *REFUSED, *PASSED_OVER, *WITHOUT_EFFECT}
    for name in sorted(set(vars(DEFAULTS)) - known):
        if _asks(config, name, (getattr(DEFAULTS, name),)):
            _warn(f"the checkpoint's generation config sets {name}, which is not known here and is passed over")


def _recommended(config: GenerationConfig, name: str, instead: str) -> str:
    return f"the checkpoint's generation config asks for {name}={getattr(config, name)}; {instead}"


def _asks(config: GenerationConfig, name: str, idle: Sequence[Any]) -> bool:
    value = getattr(config, name, None)
    return value is not None and value not in idle


@cache
def _warn(message: str) -> None:
    """Once in a process."""
    logger.warning("%s", message)
