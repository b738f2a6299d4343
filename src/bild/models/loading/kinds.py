"""Which architectures read text and write text, and which class loads them."""

from __future__ import annotations

import re
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, DynamicCache, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from bild.errors import LoadError

SOUND = ("SPEECH_SEQ_2_SEQ", "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM", "AUDIO_CLASSIFICATION", "CTC", "RNNT", "TDT")
IMAGES = ("IMAGE_TEXT_TO_TEXT", "VISUAL_QUESTION_ANSWERING", "IMAGE", "IMAGE_CLASSIFICATION", "TEXT_RECOGNITION")
FROM_IMAGES = {"git", "got_ocr2", "fuyu", "trocr", "imagegpt"}
FROM_SOUND = {"moshi", "moss_transcribe_diarize", "musicgen_decoder"}
"""Types that transformers lists among language models and that write about a picture or a sound, never about a text."""
BYTE_LATENT = "blt"
"""The type of byte latent transformers (:mod:`bild.models.byte_latent`)."""
LOCAL = "blt:local"
"""What names the local encoder and decoder of a large model of this type, as its small one."""
GENERATES = re.compile(
    r"(CausalLM|LMHead\w*|ConditionalGeneration|Seq2SeqLM|MTModel|TextToText|PreTraining|EncoderDecoderModel)$", re.I
)
OTHER_TASK = re.compile(r"For[A-Z]\w*$|EncoderModel$|RewardModel$|DoubleHeadsModel$")

USE = "use an encoder-decoder (T5, BART, Marian…) or decoder-only (GPT-2, Llama, Qwen…) checkpoint"


def auto_class(config: PreTrainedConfig, name: object, trust_remote_code: bool = False) -> type[Any]:
    """The class that loads a network of this configuration with its language-model head.

    Args:
        config: of the checkpoint.
        name: of the checkpoint, for the message.
        trust_remote_code: whether it may bring its own code; then it knows what it is.

    Raises:
        LoadError: it reads or writes something other than text, or writes nothing.
    """
    kind, own_code = config.model_type, trust_remote_code and hasattr(config, "auto_map")
    if own_code:
        return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    other, medium = _other_task(config), _medium(kind)
    # BERT and models like it can be turned into decoders, and say so in their config.
    encoder_only = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if other is None and config.is_encoder_decoder and kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForSeq2SeqLM
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder and medium is None
    if other is None and causal and not encoder_only:
        return AutoModelForCausalLM
    saved = f" (it was saved as {other})" if other else f": it is made for {medium}" if medium else ""
    raise LoadError(f"{name}: a {kind} model does not generate text from text{saved}; {USE}")


def check_part(config: PreTrainedConfig, name: object, part: str, side: str = "small") -> None:
    """Whether a network of this configuration can have the part that a name stands for.

    Args:
        config: of the large model.
        name: of the large model, for the message.
        part: ``exit:N`` or :data:`LOCAL`.
        side: what it is to be, likewise.

    Raises:
        LoadError: it has layers to exit after and no local parts, or the other way round.
    """
    is_byte_latent = config.model_type == BYTE_LATENT
    if part == LOCAL and not is_byte_latent:
        raise LoadError(f"{side} is {part}, but {name} is not byte-latent (BLT); name a {side} checkpoint, or exit:N")
    if part != LOCAL and is_byte_latent:
        raise LoadError(
            f"{side} is {part}, but {name} is byte-latent (BLT), and none of its layers writes bytes before the last "
            f"one; name {LOCAL}, its local encoder and decoder"
        )


def check_rolls_back(config: PreTrainedConfig, name: object) -> None:
    """Whether a network of this configuration can forget tokens; asked before its weights are loaded.

    Raises:
        LoadError: it keeps a recurrent state.
    """
    if config.model_type == BYTE_LATENT:
        # Its caches are ours.
        return
    listed = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    network = getattr(transformers, listed, None) if isinstance(listed, str) else None
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    if getattr(network, "_is_stateful", False) or not cache.is_croppable:
        raise LoadError(
            f"{name}: a {config.model_type} model keeps a recurrent state that cannot be rolled back; "
            "use a model with attention layers only"
        )


def _other_task(config: PreTrainedConfig) -> str | None:
    """The class a checkpoint was saved as, where that is one for another task."""
    saved = config.architectures if config.architectures else []
    other = [each for each in saved if OTHER_TASK.search(each) and not GENERATES.search(each)]
    decoder = getattr(config, "is_decoder", False)
    return other[0] if other and len(other) == len(saved) and not decoder else None


def _medium(kind: str) -> str | None:
    """What a type is made for in place of text; None for text, and for text that may have images in it."""
    if kind in FROM_SOUND or any(kind in _listed(task) for task in SOUND):
        return "sound (speech, audio)"
    listed = kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and any(kind in _listed(task) for task in IMAGES)
    return "images" if kind in FROM_IMAGES or listed else None


def _listed(task: str) -> dict[str, Any]:
    mapping: dict[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES", {})
    return mapping
