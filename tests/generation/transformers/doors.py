"""Both ways of decoding the same inputs: plain generate(), and through the door."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import bild
from bild import Policy, Result
from tests.networks import PAD, VOCAB_SIZE, build, perturbed, word_tokenizer

NAMES = ("t5", "bart", "gpt2", "llama")


ENCODES = ("t5", "bart")


SEEDS = {"t5": 3, "bart": 1, "gpt2": 5, "llama": 3}
"""Under which texts are long and varied."""


LENGTH = 16


EXACT = Policy.exact(fallback_threshold=0.2, max_draft_tokens=6)

every_architecture = pytest.mark.parametrize("name", NAMES)


@cache
def large_of(name: str) -> PreTrainedModel:
    # transformers sizes the cache of a T5 by its encoder.
    return build(name, seed=SEEDS[name], dtype=torch.float32, **({"num_decoder_layers": 2} if name == "t5" else {}))


@cache
def small_of(name: str) -> PreTrainedModel:
    return perturbed(large_of(name), 0.15)


@cache
def tokenizer_of() -> PreTrainedTokenizerFast:
    """With the word that transformers tries a tokenizer with."""
    return word_tokenizer(["<pad>", "</s>", *(f"w{id}" for id in range(2, VOCAB_SIZE - 1)), "abcdef"])


def inputs_of(name: str, rows: int = 3) -> dict[str, Tensor]:
    """Three padded texts, or the longest of them: padded on the left where the model goes on writing."""
    texts = [[5, 6, 7], [3, 9, 8, 4, 2], [11, 12, 13, 14]] if rows == 3 else [[3, 9, 8, 4, 2]]
    width = max(len(text) for text in texts)
    padded = [[PAD] * (width - len(text)) + text for text in texts]
    ids, mask = torch.tensor(padded), torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    if name in ENCODES:
        ids = torch.tensor([text + [PAD] * (width - len(text)) for text in texts])
        mask = mask.flip(1)
    return {"input_ids": ids, "attention_mask": mask}


def plain(name: str, inputs: dict[str, Any] | None = None, **options: Any) -> Any:
    given = inputs_of(name) if inputs is None else inputs
    return large_of(name).generate(**given, **({"max_new_tokens": LENGTH} | options))


def through(name: str, inputs: dict[str, Any] | None = None, policy: Any = EXACT, **options: Any) -> Any:
    bound = {key: options.pop(key) for key in ("tokenizer", "streamer", "runtime") if key in options}
    door = bild.custom_generate(options.pop("small", small_of(name)), policy, **bound)
    return plain(name, inputs, custom_generate=door, **options)


def facts(results: list[Result]) -> list[Any]:
    """What was decided; confidences and distances but for rounding."""
    rounds = [commit for result in results for commit in result.rounds]
    return [(c.tokens, c.writers, c.draft, c.reason, c.doubtful, [round(x, 4) for x in c.confidences]) for c in rounds]


def new_tokens(name: str, row: int = 0) -> list[int]:
    return plain(name)[row, 1 if name in ENCODES else 5 :].tolist()


class Avoid(LogitsProcessor):
    """Somebody's own processor: no token next to the last one."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        near = (input_ids[:, -1:] + torch.arange(-8, 9)).clamp(0, VOCAB_SIZE - 1)
        return scores.scatter(1, near, -torch.inf)


class Long(StoppingCriteria):
    """Somebody's own criterion: enough high ids."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return (input_ids > VOCAB_SIZE // 2).sum(1) >= 5


class Recorder(BaseStreamer):
    """Writes down what a streamer is told."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.calls: list[Any] = []
        self.fails_at = fails_at

    def put(self, value: Tensor) -> None:
        self.calls.append((value.dtype, value.device.type, value.tolist()))
        if len(self.calls) == self.fails_at:
            raise ConnectionError("nobody listens")

    def end(self) -> None:
        self.calls.append("end")
