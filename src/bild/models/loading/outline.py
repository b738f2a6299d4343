"""All of a checkpoint but its weights, and whether two of them make a pair: known before a weight is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bild.errors import InputError, LoadError
from bild.models.int4 import check_int4
from bild.models.loading.checkpoint import check_loadable, load_config, open_source
from bild.models.loading.hardware import INT4, ROUNDED, check_memory
from bild.models.loading.kinds import check_rolls_back
from bild.models.loading.quantised import method_of
from bild.models.loading.tokenizer import load_tokenizer
from bild.models.loading.vocabulary import check_shared_vocabulary


@dataclass(frozen=True)
class Outline:
    """A checkpoint before its weights are read.

    Args:
        name: as the user wrote it.
        config: its configuration.
        tokenizer: None where it has none.
        num_bytes: memory its weights will take, 0 where that is little or not known.
    """

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    num_bytes: int = 0

    @property
    def head_size(self) -> int:
        """Rows of the language-model head, as the configuration has them."""
        text = self.config.get_text_config(decoder=True)
        names = ("decoder_vocab_size", "tgt_vocab_size", "vocab_size")
        sizes = [size for name in names if (size := getattr(text, name, None)) is not None]
        return int(sizes[0]) if sizes else 0

    @property
    def num_decoder_layers(self) -> int | None:
        """Layers that an early exit chooses from, None where the configuration does not say."""
        text = self.config.get_text_config(decoder=True)
        names = ("num_decoder_layers", "decoder_layers", "num_hidden_layers")
        return next((count for name in names if isinstance(count := getattr(text, name, None), int)), None)


def read_outline(
    name: str | os.PathLike[str],
    *,
    dtype: torch.dtype,
    device: torch.device,
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool = False,
) -> Outline:
    """A checkpoint's configuration and tokenizer, once it is known that it can decode on this device.

    Args:
        name: as for :func:`~bild.models.load_network`, like all others.

    Raises:
        LoadError: it cannot be loaded or cannot roll back.
    """
    where: dict[str, Any] = {"revision": revision, "subfolder": subfolder}
    source = open_source(name, **where)
    config = load_config(name, **where, trust_remote_code=trust_remote_code)
    needed = check_loadable(source, config, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    check_rolls_back(config, name)
    tokenizer = load_tokenizer(name, **where, trust_remote_code=trust_remote_code)
    return Outline(os.fspath(name), config, tokenizer, needed)


def check_outlines(large: Outline, small: Outline, *, device: torch.device, dtype: Any) -> None:
    """Whether two checkpoints make a pair.

    Args:
        large: of the accurate model.
        small: of the cheap one; the same one: there is no other.
        device: where both will be.
        dtype: as the user named it.

    Raises:
        InputError: weights are to be rounded that are quantised already, or on a device that has no kernel for them.
        LoadError: two kinds of model, or not enough memory for both.
        VocabularyError: different vocabularies.
    """
    check_kinds(large.config, small.config)
    outlines = [large] if small is large else [large, small]
    quantised = [each for each in outlines if method_of(each.config) is not None]
    if dtype in ROUNDED and device.type == "cuda":
        # Measured on an H200: torch's kernel takes 10 to 200 times as long as bfloat16, docs/performance.md.
        raise InputError(f"dtype is {dtype}, which is slower than bfloat16 on {device}; use dtype bfloat16, or auto")
    if dtype in ROUNDED and quantised:
        method = method_of(quantised[0].config)
        raise InputError(f"dtype is {dtype}, but the weights of {quantised[0].name} are quantised already ({method})")
    if dtype == INT4:
        check_int4()
    if large.head_size and small.head_size:
        check_shared_vocabulary(large.tokenizer, small.tokenizer, large.head_size, small.head_size)
    check_memory([(each.name, each.num_bytes) for each in outlines], device)


def check_exit(large: Outline, count: int, side: str = "small") -> None:
    """Whether the large model has layers above an early exit; whether it can exit at all its network knows.

    Args:
        large: the model.
        count: layers below the exit.
        side: what the exit is to be, for the message.

    Raises:
        LoadError: it has not.
    """
    total = large.num_decoder_layers
    if total is not None and not 1 <= count < total:
        raise LoadError(
            f"{side} is exit:{count}, but {large.name} has {total} decoder layers; "
            + (f"allowed is exit:1 to exit:{total - 1}" if total > 1 else f"name a {side} checkpoint")
        )


def check_kinds(large: PreTrainedConfig, small: PreTrainedConfig) -> None:
    """Whether both models are encoder-decoders or neither is.

    Raises:
        LoadError: one is and the other is not.
    """
    kinds = ["encoder-decoder" if config.is_encoder_decoder else "decoder-only" for config in (large, small)]
    if kinds[0] != kinds[1]:
        raise LoadError(f"the large model is {kinds[0]} and the small one {kinds[1]}; use two of one kind")
