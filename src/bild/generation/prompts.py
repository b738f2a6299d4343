"""From one input (text, conversation, token ids) to the token ids a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from bild.errors import InputError, one_line
from bild.generation import languages
from bild.generation.inputs import ALLOWED, Input, as_list, described, of_input

__all__ = ["SOURCE_OPTIONS", "Input", "Prompter", "as_list", "of_input", "task_prefix"]

OF_TEXTS = ("prefix", "task", "chat", "system", "chat_template_kwargs")
"""Options of a call that say how texts are read, and nothing to token ids."""
SOURCE_OPTIONS = (*OF_TEXTS, "src_lang", "tgt_lang")
"""Options of a call that say how inputs are read."""
OURS = ("conversation", "tokenize", "return_dict", "return_tensors")
"""Arguments of ``apply_chat_template`` that are not the template's."""


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
        chat_template_kwargs: what else the chat template is told, as ``{"enable_thinking": False}``.
        src_lang: language of the inputs, as a multilingual checkpoint spells it; None: the tokenizer's.
        tgt_lang: language of the outputs, for checkpoints that read it in front of the input.

    Raises:
        InputError: an option that would change nothing here, or a language the checkpoint does not have.
    """

    tokenizer: PreTrainedTokenizerBase | None
    config: PreTrainedConfig
    prefix: str = ""
    chat: bool | None = None
    system: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    src_lang: str | None = None
    tgt_lang: str | None = None

    def __post_init__(self) -> None:
        for name in ("prefix", "system"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InputError(f"{name} is {described(value)}; give text")
        if not isinstance(self.chat_template_kwargs, Mapping):
            raise InputError(f"chat_template_kwargs is {described(self.chat_template_kwargs)}; give a dict")
        taken = [name for name in self.chat_template_kwargs if name in OURS]
        if taken:
            raise InputError(f"chat_template_kwargs hold {taken[0]}, which is no argument of a template; leave it out")
        if self.src_lang is not None:
            languages.check_source(self._tokenizer(), self.src_lang)
        if self.tgt_lang is not None:
            languages.check_target(self._tokenizer(), self.tgt_lang, encodes=bool(self.config.is_encoder_decoder))

    def encode(self, item: Input) -> list[int]:
        """Token ids of one input.

        Raises:
            InputError: nothing in it, text without a tokenizer, or something that is neither text nor token ids.
        """
        if isinstance(item, str):
            return self._encode_text(item)
        if isinstance(item, bytes | bytearray) or not isinstance(item, Sequence):
            raise InputError(f"cannot decode {described(item)}; {ALLOWED}")
        if len(item) and all(isinstance(turn, Mapping) for turn in item):
            return self._encode_conversation([dict(turn) for turn in item if isinstance(turn, Mapping)])
        self._refuse_unread()
        return self._checked(item)

    def encode_list(self, items: list[Input]) -> list[list[int]] | None:
        """As :meth:`encode` of each, much faster, where all are texts; None: each is encoded, or refused, alone."""
        texts = [item for item in items if isinstance(item, str) and item.strip()]
        if len(texts) < len(items):
            return None
        try:
            self._refuse_unused()
            return self.encode_many(texts)
        except InputError:
            return None

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """As :meth:`encode` of each text, none of which may be empty, much faster."""
        if self._chats():
            return [self._encode_text(text) for text in texts]
        return self._tokens([self._before() + text for text in texts])

    def target_options(self, config: GenerationConfig) -> dict[str, Any]:
        """The options of a call that make the output be in ``tgt_lang``; none where the input says so."""
        return {} if self.tgt_lang is None else languages.target_options(self._tokenizer(), config, self.tgt_lang)

    def _checked(self, ids: Sequence[Any]) -> list[int]:
        size = self.config.get_text_config(decoder=True).vocab_size
        if not ids:
            raise InputError("the input holds no tokens; give at least one")
        for id in ids:
            if not isinstance(id, Integral) or isinstance(id, bool):
                raise InputError(f"cannot decode {described(id)} among token ids; {ALLOWED}")
            if not 0 <= int(id) < size:
                raise InputError(f"token id {id} is outside the vocabulary; allowed is 0 to {size - 1}")
        return [int(id) for id in ids]

    def _encode_text(self, text: str) -> list[int]:
        if not text.strip():
            raise InputError("the text is empty; give at least one word")
        if self._chats():
            return self._encode_conversation([{"role": "user", "content": self._before() + text}])
        self._refuse_unused()
        return self._tokens([self._before() + text])[0]

    def _encode_conversation(self, turns: list[dict[str, Any]]) -> list[int]:
        tokenizer = self._tokenizer()
        if not tokenizer.chat_template:
            raise InputError("the checkpoint has no chat template; give plain text instead of a conversation")
        if self.system:
            if turns[0].get("role") == "system":
                raise InputError("the conversation has a system turn of its own; leave system out")
            turns = [{"role": "system", "content": self.system}, *turns]
        for turn in turns:
            _check_letters(turn.get("content"))
        given = {"add_generation_prompt": True, **self.chat_template_kwargs}
        try:
            encoded: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **given)
        except Exception as error:  # a template is a program of the checkpoint and may raise anything
            roles = ", ".join(str(turn.get("role")) for turn in turns)
            raise InputError(f"the chat template refuses these turns ({roles}): {one_line(error)}") from None
        return list(encoded["input_ids"])

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        tokenizer = self._tokenizer()
        for index, text in enumerate(texts):
            with of_input(index, alone=len(texts) == 1):
                _check_letters(text)
        try:
            with languages.source_language(tokenizer, self.src_lang):
                return list(tokenizer(texts).input_ids)
        except Exception as error:  # tokenizers of checkpoints raise what they like
            raise InputError(f"the tokenizer cannot read the text: {one_line(error)}") from None

    def _before(self) -> str:
        language = "" if self.tgt_lang is None else languages.source_prefix(self._tokenizer(), self.tgt_lang)
        return language + self.prefix

    def _refuse_unused(self) -> None:
        for name in ("system", "chat_template_kwargs"):
            if getattr(self, name):
                raise InputError(f"{name} needs a chat, and texts are read as they are here; leave it out, or set chat")

    def _refuse_unread(self) -> None:
        """Token ids are read as they are."""
        for name in OF_TEXTS:
            if getattr(self, name, None):
                raise InputError(f"{name} goes with texts, and this input is token ids; leave it out, or give text")

    def _chats(self) -> bool:
        if self.chat is not None:
            return self.chat
        return not self.config.is_encoder_decoder and bool(self._tokenizer().chat_template)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError("the pair has no tokenizer; give token ids instead of text")
        return self.tokenizer


def _check_letters(text: Any) -> None:
    """Refuse half characters, which no tokenizer can read."""
    try:
        if isinstance(text, str):
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise InputError(f"the text holds half a character ({half} at {error.start}); decode its source anew") from None


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
