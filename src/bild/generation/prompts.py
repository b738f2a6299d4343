"""From what a user hands over (text, conversation, token ids, tensors) to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bild.errors import InputError

Conversation = Sequence[Mapping[str, str]]
Input = str | Conversation | Sequence[int]


@dataclass(frozen=True)
class Prompter:
    """Turns one input into token ids.

    Args:
        tokenizer: of the pair, None if it has none.
        config: of the large model.
        prefix: text put before every input, as T5's ``"summarize: "``.
        chat: whether a text is a user's turn in a conversation; None: where a decoder-only
            checkpoint brings a chat template.
        system: system message of that conversation.
    """

    tokenizer: PreTrainedTokenizerBase | None
    config: PreTrainedConfig
    prefix: str = ""
    chat: bool | None = None
    system: str | None = None

    def encode(self, item: Input) -> list[int]:
        """Token ids of one input.

        Raises:
            InputError: nothing in it, or text without a tokenizer.
        """
        if isinstance(item, str):
            return self._encode_text(item)
        if len(item) and isinstance(item[0], Mapping):
            return self._encode_chat([dict(turn) for turn in item])  # type: ignore[call-overload]
        ids = [int(id) for id in item]  # type: ignore[call-overload]
        size = self.config.get_text_config(decoder=True).vocab_size
        outside = [id for id in ids if not 0 <= id < size]
        if not ids:
            raise InputError("the input holds no tokens; give at least one")
        if outside:
            raise InputError(f"token id {outside[0]} is outside the vocabulary; allowed is 0 to {size - 1}")
        return ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """As :meth:`encode` of each text, none of which may be empty, much faster."""
        if self._chats():
            return [self._encode_text(text) for text in texts]
        return list(self._tokenizer()([self.prefix + text for text in texts]).input_ids)

    def _encode_text(self, text: str) -> list[int]:
        if not text.strip():
            raise InputError("the text is empty; give at least one word")
        tokenizer = self._tokenizer()
        if self._chats():
            turns = [{"role": "system", "content": self.system}] if self.system else []
            return self._encode_chat([*turns, {"role": "user", "content": self.prefix + text}])
        return list(tokenizer(self.prefix + text).input_ids)

    def _encode_chat(self, turns: list[dict[str, str]]) -> list[int]:
        tokenizer = self._tokenizer()
        if not tokenizer.chat_template:
            raise InputError("the checkpoint has no chat template; give plain text instead of a conversation")
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        return list(encoded["input_ids"])

    def _chats(self) -> bool:
        if self.chat is not None:
            return self.chat
        return not self.config.is_encoder_decoder and bool(self._tokenizer().chat_template)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError("the pair has no tokenizer; give token ids instead of text")
        return self.tokenizer


def task_prefix(config: PreTrainedConfig, task: str | None) -> str:
    """The prefix a T5 checkpoint wants for a task, such as ``"summarization"``.

    Raises:
        InputError: a task the checkpoint does not name.
    """
    if task is None:
        return ""
    tasks: dict[str, Any] = getattr(config, "task_specific_params", None) or {}
    if task not in tasks:
        known = ", ".join(tasks) if tasks else "none"
        raise InputError(f"task is {task!r}; this checkpoint names {known}")
    return str(tasks[task].get("prefix", ""))


def as_list(inputs: Any, attention_mask: torch.Tensor | None = None) -> tuple[list[Input], bool]:
    """One input or many as a list, and whether it was one.

    Args:
        inputs: a text; a list of texts, conversations or token id lists; a tensor ``[B, T]`` or
            ``[T]``; or what a tokenizer returns.
        attention_mask: of a tensor, 0 where it is padding.
    """
    if isinstance(inputs, Mapping):
        return as_list(inputs["input_ids"], inputs.get("attention_mask", attention_mask))
    if isinstance(inputs, torch.Tensor):
        rows = inputs if inputs.dim() == 2 else inputs[None]
        mask = torch.ones_like(rows) if attention_mask is None else attention_mask.reshape(rows.shape)
        unpadded = [row[kept.bool()].tolist() for row, kept in zip(rows, mask, strict=True)]
        return unpadded, inputs.dim() == 1
    if isinstance(inputs, str):
        return [inputs], True
    if not isinstance(inputs, Iterable):
        raise InputError(f"cannot decode a {type(inputs).__name__}; give text, a list of texts, or token ids")
    items = list(inputs)
    if items and isinstance(items[0], int | Mapping):
        return [items], True
    return items, False
