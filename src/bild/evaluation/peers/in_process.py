"""transformers' own generate(), as it is: greedy, and assisted by the small model."""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakValueDictionary

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedModel
from transformers.utils.import_utils import is_sklearn_available

from bild.errors import LoadError, one_line
from bild.evaluation.method import MethodSpec, Output, PeerContext
from bild.evaluation.peers.options import one_of, probability, read_options, whole_number
from bild.generation.prompts import Prompter
from bild.generation.text import decode
from bild.models import is_part, load_tokenizer, resolve_dtype

DTYPES = ("float32", "bfloat16", "float16")
SCHEDULES = ("constant", "heuristic", "heuristic_transient")
ASSISTANT_OPTIONS = {
    "num_assistant_tokens": whole_number,
    "assistant_confidence_threshold": probability,
    "schedule": one_of(*SCHEDULES),
}

_LOADED: WeakValueDictionary[tuple[str, torch.dtype, str], PreTrainedModel] = WeakValueDictionary()


class TransformersPeer:
    """``large.generate``, greedy, batch 1, from text to text; with a small model, assisted generation.

    Args:
        name: as the user wrote it.
        large: the model whose text is wanted.
        prompter: from text to token ids; its tokenizer turns tokens back into text.
        max_new_tokens: longest continuation, tokens, 1…
        small: transformers' ``assistant_model``; None: greedy without one.
        assistant: what steers the small model: transformers reads ``num_assistant_tokens`` and the
            options beside it from the generation config of the assistant, not from arguments of generate.
            None: the small model has its own.
    """

    def __init__(
        self,
        name: str,
        large: PreTrainedModel,
        prompter: Prompter,
        max_new_tokens: int,
        small: PreTrainedModel | None = None,
        assistant: GenerationConfig | None = None,
    ) -> None:
        self.name, self.prompter, self.max_new_tokens = name, prompter, max_new_tokens
        self._large: Any = large
        self._small: Any = small
        self._assistant = assistant
        if small is not None and assistant is None:
            self._assistant = copy.deepcopy(small.generation_config)
        networks = [large] if small is None else [large, small]
        self.weight_bytes: int | None = sum(w.numel() * w.element_size() for n in networks for w in n.parameters())
        self.details: dict[str, Any] = {"transformers": transformers.__version__, "dtype": str(large.dtype)}
        if small is not None:
            # With scikit-learn transformers moves the threshold from round to round; without, it stays.
            self.details["threshold_adapts"] = bool(is_sklearn_available())

    def __call__(self, source: str) -> Output:
        assert self._large is not None, "closed"
        prompt = torch.tensor([self.prompter.encode(source)], device=self._large.device)
        options = {"do_sample": False, "num_beams": 1, "max_new_tokens": self.max_new_tokens}
        options |= self.prompter.target_options(self._large.generation_config)
        sequences = self._large.generate(
            prompt, attention_mask=torch.ones_like(prompt), **options, **self._assistance()
        )
        start = 1 if self._large.config.is_encoder_decoder else prompt.shape[1]
        tokens = sequences[0, start:].tolist()
        return Output(decode(self.prompter.tokenizer, tokens), tokens)

    def close(self) -> None:
        self._large = self._small = None

    def _assistance(self) -> dict[str, Any]:
        if self._small is None:
            return {}
        # Rows share the small model but not its settings, and the heuristic schedule writes into them.
        self._small.generation_config = self._assistant
        return {"assistant_model": self._small}


def greedy(spec: MethodSpec, context: PeerContext) -> TransformersPeer:
    """``transformers-greedy:dtype=…``.

    Raises:
        InputError: an unknown option or value.
        LoadError: a checkpoint that cannot be loaded.
    """
    dtype = _dtype(read_options(spec, {"dtype": one_of(*DTYPES)}), context)
    large = _network(context.large, dtype, context.device)
    return TransformersPeer(spec.text, large, _prompter(context, large), context.max_new_tokens)


def assisted(spec: MethodSpec, context: PeerContext) -> TransformersPeer:
    """``transformers-assisted:dtype=…:num_assistant_tokens=…:assistant_confidence_threshold=…:schedule=…``.

    Options not given are transformers' defaults. Raises as :func:`greedy`.
    """
    options = read_options(spec, {"dtype": one_of(*DTYPES), **ASSISTANT_OPTIONS})
    dtype = _dtype(options, context)
    if is_part(context.small):
        raise LoadError(f"small is {context.small}, which transformers cannot be assisted by; name a small checkpoint")
    large, small = (_network(name, dtype, context.device) for name in (context.large, context.small))
    config = assistant_config(small, {key: options[key] for key in ASSISTANT_OPTIONS if key in options})
    return TransformersPeer(spec.text, large, _prompter(context, large), context.max_new_tokens, small, config)


def assistant_config(small: PreTrainedModel, options: dict[str, Any]) -> GenerationConfig:
    """A copy of the small model's generation config with these options in it.

    Args:
        small: the assistant; left as it is.
        options: ``num_assistant_tokens`` (1…, transformers' default 20), ``assistant_confidence_threshold`` (0…1,
            default 0.4: the assistant stops below), ``schedule`` (default ``"constant"``).
    """
    names = {"schedule": "num_assistant_tokens_schedule"}
    config = copy.deepcopy(small.generation_config)
    for key, value in options.items():
        setattr(config, names.get(key, key), value)
    return config


def _dtype(options: dict[str, Any], context: PeerContext) -> torch.dtype:
    return resolve_dtype(options.get("dtype", "auto"), torch.device(context.device))


def _network(name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The checkpoint as transformers loads it, shared by all rows of one dtype."""
    key = (name, dtype, device)
    network = _LOADED.get(key)
    if network is None:
        # Not bild.models.load_network: what that speeds up a user of transformers does not have.
        try:
            config = AutoConfig.from_pretrained(name)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            loaded: Any = kind.from_pretrained(name, dtype=dtype, use_safetensors=True)
            network = loaded.to(device).eval()
        except Exception as error:  # transformers, safetensors and the hub each raise their own
            raise LoadError(f"{name}: transformers cannot load it ({one_line(error)})") from error
        _LOADED[key] = network
    return network


def _prompter(context: PeerContext, large: PreTrainedModel) -> Prompter:
    tokenizer = load_tokenizer(context.large)
    return Prompter(tokenizer, large.config, src_lang=context.src_lang, tgt_lang=context.tgt_lang)
