"""From examples to token ids: what is trained on, and a count of what is left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from bild.data import Data
from bild.errors import InputError
from bild.generation.languages import target_language
from bild.generation.prompts import Prompter
from bild.models import max_positions

Ids = NDArray[np.int32]
Item = TypeVar("Item")
AT_ONCE = 1000
"""Texts handed to the tokenizer together."""
LONGEST_NAMED = 10_000_000
"""Longest text a tokenizer may name and mean it; those without a limit name 1e30."""
UNBOUNDED = 1 << 60
WITHOUT_END = "label without an end"
"""Why a text that the large model has not ended is left out."""


@dataclass(frozen=True, slots=True)
class TrainingText:
    """One source and the target it should become."""

    place: str
    """``"train.jsonl line 7"``."""
    source: str
    target: str | Sequence[int]
    """A text, or token ids as they are."""


@dataclass
class Corpus:
    """Encoded examples, and how many were left out and why."""

    sources: list[Ids] = field(default_factory=list)
    targets: list[Ids] = field(default_factory=list)
    """With the token that ends them."""
    places: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    first_left_out: dict[str, str] = field(default_factory=dict)
    """For each reason, where it was first met."""

    def __len__(self) -> int:
        return len(self.sources)

    def add(self, place: str, source: Sequence[int], target: Sequence[int]) -> None:
        """Add an encoded example."""
        self.sources.append(np.array(source, dtype=np.int32))
        self.targets.append(np.array(target, dtype=np.int32))
        self.places.append(place)

    def leave_out(self, place: str, reason: str) -> None:
        """Count an example that is not trained on."""
        self.left_out[reason] += 1
        self.first_left_out.setdefault(reason, place)

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids, as 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for ids in (*self.sources, *self.targets):
            digest.update(len(ids).to_bytes(4, "little") + ids.tobytes())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """How many, which, and what was left out, as plain JSON values."""
        return {"used": len(self), "sha256": self.digest, "left_out": dict(self.left_out)}

    def describe(self) -> str:
        """One line: how many examples, and what was left out."""
        total = len(self) + self.left_out.total()
        reasons = [
            f"{count} {reason} (first: {self.first_left_out[reason]})" for reason, count in self.left_out.items()
        ]
        return f"{len(self)} of {total} examples" + (f"; left out: {', '.join(reasons)}" if reasons else "")


@dataclass(frozen=True)
class Coder:
    """Turns texts into the token ids a network trains on.

    Args:
        tokenizer: of the network.
        config: of the network.
        prefix: text put before every source.
        chat: whether a source is a user's turn; None: where a decoder-only tokenizer has a chat template.
        max_source_tokens: longest source, 1…; None: what the network and its tokenizer can place.
        max_target_tokens: longest target, end token included, 1…; None: likewise.
        src_lang: language of the sources of a multilingual checkpoint; None: as its tokenizer is set.
        tgt_lang: likewise of the targets.
    """

    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    prefix: str = ""
    chat: bool | None = None
    max_source_tokens: int | None = None
    max_target_tokens: int | None = None
    src_lang: str | None = None
    tgt_lang: str | None = None

    @property
    def prompter(self) -> Prompter:
        """How sources are encoded: as for decoding."""
        return Prompter(
            self.tokenizer, self.config, self.prefix, self.chat, src_lang=self.src_lang, tgt_lang=self.tgt_lang
        )

    @cached_property
    def positions(self) -> int:
        """Most tokens a text may have: what the network can place and the tokenizer says."""
        named, placed = self.tokenizer.model_max_length, max_positions(self.config)
        return min(named if named <= LONGEST_NAMED else UNBOUNDED, UNBOUNDED if placed is None else placed)

    def encode(self, pairs: Iterable[TrainingText], corpus: Corpus) -> None:
        """Add what can be trained on to a corpus, and count the rest: duplicates and texts that are too long."""
        seen = set[int]()
        for chunk in _chunks(pairs):
            fresh = []
            for pair in chunk:
                key = hash((pair.source, pair.target if isinstance(pair.target, str) else tuple(pair.target)))
                if key in seen:
                    corpus.leave_out(pair.place, "duplicate")
                else:
                    fresh.append(pair)
                seen.add(key)
            for pair, source, target in zip(fresh, self._sources(fresh), self._targets(fresh), strict=True):
                if reason := self.too_long(len(source), len(target)):
                    corpus.leave_out(pair.place, reason)
                else:
                    corpus.add(pair.place, source, target)

    def source_lengths(self, sources: Sequence[str]) -> list[int]:
        """Tokens of each source."""
        return [len(ids) for chunk in _chunks(sources) for ids in self.prompter.encode_many(chunk)]

    def too_long(self, source: int, target: int) -> str | None:
        """Why an example of these many tokens is left out, None if it is not."""
        longest_source = min(self.positions, self.max_source_tokens or UNBOUNDED)
        longest_target = min(self.positions, self.max_target_tokens or UNBOUNDED)
        if source > longest_source:
            return f"source longer than {longest_source} tokens"
        if target > longest_target:
            return f"target longer than {longest_target} tokens"
        if not self.config.is_encoder_decoder and source + target > self.positions:
            return f"longer than {self.positions} tokens together"
        return None

    def _sources(self, pairs: list[TrainingText]) -> list[list[int]]:
        return self.prompter.encode_many([pair.source for pair in pairs]) if pairs else []

    def _targets(self, pairs: list[TrainingText]) -> list[Sequence[int]]:
        """Token ids of the targets; texts end with the end token, ids are taken as they are."""
        texts = [pair.target for pair in pairs if isinstance(pair.target, str)]
        if self.config.is_encoder_decoder:
            with target_language(self.tokenizer, self.tgt_lang):
                encoded = self.tokenizer(text_target=texts).input_ids if texts else []
        else:
            encoded = self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []
        ended = iter([*ids, *self._end][: len(ids) + (ids[-1:] != self._end)] for ids in encoded)
        return [next(ended) if isinstance(pair.target, str) else pair.target for pair in pairs]

    @property
    def _end(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise InputError("the tokenizer names no end token, so texts would never end; give one that does")
        return [int(end)]


def pairs_of(sets: Mapping[str, Data], corpus: Corpus) -> Iterator[TrainingText]:
    """One pair for each reference of each example; rows that make none are counted in the corpus."""
    for name, data in sets.items():
        for line in data.skipped:
            place, _, reason = line.partition(": ")
            corpus.leave_out(f"{name} {place}", reason)
        for example in data.examples:
            place = f"{name} line {example.id}"
            if not example.references:
                corpus.leave_out(place, "no target text")
            yield from (TrainingText(place, example.source, reference) for reference in example.references)


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(islice(rest, AT_ONCE)):
        yield chunk
