"""Who judges segments, as a user says it: a classifier checkpoint, a function, or an object of one's own."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from bild.decoding import Draft, Policy, Reward, Row, Segments
from bild.errors import InputError, one_line
from bild.generation.text import decode
from bild.models import Classifier

FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")
"""How a Python function is written."""
LABEL = ",label="
FORM = "a classifier's folder or hub NAME, NAME,label=CLASS, or module:function"

TextFunction = Callable[[str, str, str], float]
"""Judges a segment by ``(source, before, segment)``: the source or prompt, the text before the segment, and itself."""
RewardLike = str | os.PathLike[str] | TextFunction | Reward
"""A reward as a user gives it."""


class Texts(NamedTuple):
    """What there is to judge, as texts."""

    source: str
    """What the encoder reads, where the text may share its vocabulary, or the prompt."""
    before: str
    """What is written before the segment."""
    segment: str


class TextReward:
    """A function of texts as a reward.

    Args:
        function: see :data:`TextFunction`.
        tokenizer: of the pair.
    """

    def __init__(self, function: TextFunction, tokenizer: PreTrainedTokenizerBase) -> None:
        self.function, self.tokenizer = function, tokenizer

    def score(self, rows: Sequence[Row], drafts: Sequence[Draft]) -> list[float]:
        return [self.function(*texts_of(row, self.tokenizer)) for row in rows]


class ClassifierReward:
    """How likely a class is for the source and all of the text up to the segment's end.

    Args:
        classifier: of pairs of texts.
        tokenizer: of the pair.
    """

    def __init__(self, classifier: Classifier, tokenizer: PreTrainedTokenizerBase) -> None:
        self.classifier, self.tokenizer = classifier, tokenizer

    def score(self, rows: Sequence[Row], drafts: Sequence[Draft]) -> list[float]:
        texts = [texts_of(row, self.tokenizer) for row in rows]
        return self.classifier.probabilities([(each.source, each.before + each.segment) for each in texts])


class Delimited:
    """Whether the tokens of a segment show its delimiter, behind something else than delimiters.

    Args:
        delimiter: text that a segment ends with.
        tokenizer: of the pair.
    """

    def __init__(self, delimiter: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.delimiter, self.tokenizer = delimiter, tokenizer

    def __call__(self, tokens: Sequence[int]) -> bool:
        text = decode(self.tokenizer, tokens)
        while text.startswith(self.delimiter):
            text = text[len(self.delimiter) :]
        return self.delimiter in text


def texts_of(row: Row, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """The texts of a row whose segment is drafted."""
    prompt = row.tokens[: row.prompt_length]
    before = decode(tokenizer, row.tokens[row.prompt_length : row.segment])
    whole = decode(tokenizer, row.tokens[row.prompt_length :])
    # Decoded by itself a segment may lack the space or the characters that its first tokens are part of.
    own = whole[len(before) :] if whole.startswith(before) else decode(tokenizer, row.tokens[row.segment :])
    return Texts(decode(tokenizer, row.request.source if row.request.source else prompt), before, own)


def check_reward(policy: Policy, asked: RewardLike | None, own: RewardLike | None = None) -> None:
    """Whether a policy about segments has a reward, and a reward that was asked for such a policy.

    Args:
        policy: of the call.
        asked: the reward of this very call.
        own: that of all calls of the pair.

    Raises:
        InputError: one is there without the other.
    """
    if policy.segment is not None and policy.alone is None and asked is None and own is None:
        raise InputError(
            f"the policy judges segments by a reward, and there is none; name one with reward=… (--reward): {FORM}"
        )
    if asked is not None and policy.segment is None:
        raise InputError(
            "the reward has nothing to judge under this policy; take policy='reward', or leave the reward out"
        )


def segments_of(policy: Policy, reward: Reward | None, tokenizer: PreTrainedTokenizerBase | None) -> Segments | None:
    """What a policy about segments needs; None for any other.

    Raises:
        InputError: no reward, or no tokenizer that could find where a segment ends.
    """
    if policy.segment is None or policy.alone is not None:
        return None
    check_reward(policy, None, reward)
    assert reward is not None
    if tokenizer is None:
        raise InputError("segments end with a text, and the pair has no tokenizer; load one with the pair")
    return Segments(reward, Delimited(policy.segment.delimiter, tokenizer))


def reward_of(
    given: RewardLike,
    tokenizer: PreTrainedTokenizerBase | None,
    device: torch.device | str = "cpu",
    *,
    trust_remote_code: bool = False,
) -> Reward:
    """The reward that a user means.

    Args:
        given: text as in :data:`FORM`, a function of texts, or an object with ``score(rows, drafts)``.
        tokenizer: of the pair.
        device: where a classifier is put.
        trust_remote_code: whether code that comes with it may run.

    Raises:
        InputError: no such function or class, or something else.
        LoadError: a checkpoint that is no classifier.
    """
    if hasattr(given, "score"):
        own: Any = given
        judge: Reward = own
        return judge
    if tokenizer is None:
        raise InputError("a reward judges texts, and the pair has no tokenizer; give one with score(rows, drafts)")
    if isinstance(given, str | os.PathLike):
        text = os.fspath(given)
        function = FUNCTION.fullmatch(text)
        if function is None or Path(text).exists():
            name, _, label = text.partition(LABEL)
            chosen = Classifier.load(name, label=label or None, device=device, trust_remote_code=trust_remote_code)
            return ClassifierReward(chosen, tokenizer)
        return TextReward(_function(**function.groupdict()), tokenizer)
    if not callable(given):
        raise InputError(f"reward is a {type(given).__name__}; give {FORM}, or a function of (source, before, segment)")
    return TextReward(given, tokenizer)


def _function(module: str, name: str) -> TextFunction:
    """A function by its place; the working folder is looked in first, as ``python -m`` does."""
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module itself raises
        raise InputError(f"reward {module}:{name} cannot be imported ({one_line(error)}); give {FORM}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise InputError(
            f"reward {module}:{name} is a {type(found).__name__}; give a function of (source, before, segment)"
        )
    function: TextFunction = found
    return function
