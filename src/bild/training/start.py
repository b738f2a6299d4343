"""Where a network begins: a checkpoint, a configuration file, or a shape given by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bild.data.json_text import from_json
from bild.errors import InputError, LoadError, one_line
from bild.models import load_config, load_network, load_tokenizer, new_network
from bild.training.recipe import Recipe

TOKEN_IDS = ("pad_token_id", "eos_token_id", "bos_token_id")


@dataclass(frozen=True, kw_only=True)
class Start:
    """What training begins with; one of the first three.

    Args:
        checkpoint: folder or hub name of a network to go on with.
        config: folder with a ``config.json`` for a new network.
        shape: ``TYPE:key=value,…`` for a new network, keys as in transformers' configurations:
            ``"t5:d_model=256,num_layers=8"``.
        tokenizer: folder or hub name; None: the checkpoint's.
        vocab_size: pieces of a new tokenizer made from the training texts, 16…; None: none is made.
        trust_remote_code: whether code that comes with a checkpoint may run.

    Raises:
        InputError: not exactly one beginning.
    """

    checkpoint: str | None = None
    config: str | None = None
    shape: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        given = [value for value in (self.checkpoint, self.config, self.shape) if value is not None]
        if len(given) != 1:
            raise InputError(f"{len(given)} beginnings are given; allowed is one of --model, --config, --shape")
        if self.vocab_size is not None and (self.trained or self.tokenizer is not None):
            raise InputError("a new tokenizer is for a new network, without --model and --tokenizer")

    @property
    def trained(self) -> bool:
        """Whether the weights have been trained before."""
        return self.checkpoint is not None

    def dtype(self) -> torch.dtype:
        """The number format the checkpoint came in; float32 for a new network."""
        if self.checkpoint is None:
            return torch.float32
        named = load_config(self.checkpoint, trust_remote_code=self.trust_remote_code).dtype
        return named if isinstance(named, torch.dtype) else torch.float32

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the network, where none is to be made.

        Raises:
            InputError: there is none.
            LoadError: it cannot be read.
        """
        name = self.tokenizer or self.checkpoint or self.config
        tokenizer = None if name is None else load_tokenizer(name, trust_remote_code=self.trust_remote_code)
        if tokenizer is None:
            raise InputError("there is no tokenizer; name one with --tokenizer, or make one with --new-tokenizer")
        return tokenizer

    def load_config(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> PreTrainedConfig:
        """The network's configuration, with the recipe's dropout; a new one for the tokenizer's vocabulary.

        Raises:
            InputError: a shape that does not exist.
            LoadError: a configuration that cannot be loaded.
        """
        named = self.checkpoint or self.config
        if named is None:
            config = for_tokenizer(parse_shape(str(self.shape)), tokenizer)
        else:
            config = load_config(named, trust_remote_code=self.trust_remote_code)
            config = config if self.trained else for_tokenizer(config, tokenizer)
        return with_dropout(config, recipe.dropout)

    def load_network(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, device: torch.device
    ) -> PreTrainedModel:
        """The network in float32, ready to train; random weights follow the recipe's seed.

        Args:
            config: of :meth:`load_config`.
            tokenizer: must not know more pieces than the network.
            recipe: its seed.
            device: where to train.

        Raises:
            InputError: a shape that cannot be built.
            LoadError: a checkpoint that cannot be loaded.
        """
        if self.checkpoint is not None:
            options: dict[str, Any] = {"config": config, "trust_remote_code": self.trust_remote_code}
            network = load_network(self.checkpoint, dtype=torch.float32, device=device, trainable=True, **options)
            check_fits(tokenizer, network)
            return network
        torch.manual_seed(recipe.seed)
        try:
            made: Any = new_network(config)
            placed: PreTrainedModel = made.to(device)
            return placed
        except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
            raise InputError(f"no network has this shape ({one_line(error)})") from None


def parse_shape(text: str) -> PreTrainedConfig:
    """The configuration that ``TYPE:key=value,…`` stands for.

    Raises:
        InputError: a type or key transformers does not know.
    """
    kind, _, rest = text.partition(":")
    try:
        config = AutoConfig.for_model(kind)
    except ValueError:
        raise InputError(
            f"shape {text!r}: no network is of type {kind!r}; allowed are t5, bart, gpt2, llama, …"
        ) from None
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not hasattr(config, key):
            raise InputError(f"shape {text!r}: {part!r} sets nothing a {kind} has; allowed are key=value of its config")
        values[key] = _value(value)
    try:
        return AutoConfig.for_model(kind, **values)
    except Exception as error:  # each configuration checks itself in its own way
        raise InputError(f"shape {text!r}: {' '.join(str(error).split())}") from None


def _value(text: str) -> Any:
    """A number, true, false, null or a word."""
    try:
        return from_json(text)
    except ValueError:
        return text


def for_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration with a tokenizer's vocabulary and special tokens."""
    config.vocab_size = len(tokenizer)
    for name in TOKEN_IDS:
        setattr(config, name, getattr(tokenizer, name))
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id
        if getattr(config, "forced_eos_token_id", None) is not None:
            config.forced_eos_token_id = tokenizer.eos_token_id
    return config


def with_dropout(config: PreTrainedConfig, dropout: float | None) -> PreTrainedConfig:
    """The configuration with every dropout set to this rate; None: as it is."""
    if dropout is not None:
        for key, value in config.to_dict().items():
            if isinstance(value, float | int) and ("dropout" in key or key.endswith("_pdrop")):
                setattr(config, key, dropout)
    return config


def check_fits(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> None:
    """Whether a network has a row for every id its tokenizer writes.

    Raises:
        LoadError: it has not.
    """
    embeddings: Any = network.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        raise LoadError(
            f"the tokenizer has {len(tokenizer)} pieces and the network embeds {rows}; use the checkpoint's own"
        )
