"""How a run is watched and where it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bild.errors import InputError, check_count
from bild.models.loading import DTYPES
from bild.training.corpus import Coder


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is watched and where it computes.

    Args:
        metric: dev score: ``"bleu"``, ``"chrf"``, ``"rouge1"``, ``"rouge2"``, ``"rougeL"``, ``"exact_match"``.
        eval_every: steps between dev scores, 1…; None: a twentieth of all steps, at least 100.
        patience: dev scores without a new best after which training stops, 1…; None: never.
        log_every: steps between lines of progress, 1….
        save_minutes: minutes between states a killed run goes on from, 0…: after every step.
        prefix: text put before every source.
        chat: whether a source is a user's turn; None: where a decoder-only tokenizer has a chat template.
        src_lang: language of the sources of a multilingual checkpoint, as it spells it; None: as its tokenizer is set.
        tgt_lang: likewise of the targets; None: as its tokenizer and its generation config say.
        max_source_tokens: examples with longer sources are left out, 1…; None: what the network places.
        max_target_tokens: likewise, end token included; also the longest text of a dev score.
        device: ``"cpu"``, ``"cuda"``, … or ``"auto"``.
        dtype: of matrix products; weights are trained in float32. ``"auto"``: bfloat16 where it is native.
        save_dtype: of the result's weights; ``"auto"``: as the checkpoint came, float32 for a new network.
        compile: whether to compile the layers; None: where the run is long enough to pay for it.
        fresh: delete an earlier run in the folder.
        arguments: for provenance, plain JSON values.

    Raises:
        InputError: a value out of range.
    """

    metric: str = "bleu"
    eval_every: int | None = None
    patience: int | None = None
    log_every: int = 50
    save_minutes: float = 5.0
    prefix: str = ""
    chat: bool | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None
    max_source_tokens: int | None = None
    max_target_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    save_dtype: str = "auto"
    compile: bool | None = None
    fresh: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("eval_every", "patience", "log_every", "max_source_tokens", "max_target_tokens"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        if not self.save_minutes >= 0:
            raise InputError(f"save_minutes is {self.save_minutes}; allowed is 0 or more")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}; training allows auto, float32, bfloat16")
        if self.save_dtype not in ("auto", *DTYPES):
            raise InputError(f"save_dtype is {self.save_dtype!r}; allowed are auto, {', '.join(DTYPES)}")

    def coder(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Coder:
        """How texts are encoded."""
        longest = (self.max_source_tokens, self.max_target_tokens)
        return Coder(tokenizer, config, self.prefix, self.chat, *longest, self.src_lang, self.tgt_lang)

    @property
    def languages(self) -> dict[str, str]:
        """Those that are named."""
        named = {"src_lang": self.src_lang, "tgt_lang": self.tgt_lang}
        return {option: code for option, code in named.items() if code is not None}

    def describe(self) -> dict[str, Any]:
        """What the result depends on, as plain JSON values."""
        names = ("metric", "eval_every", "patience", "prefix", "chat", "max_source_tokens", "max_target_tokens")
        described = {name: getattr(self, name) for name in (*names, "dtype", "save_dtype", "compile")}
        return described | self.languages
