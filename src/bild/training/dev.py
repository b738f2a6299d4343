"""How good a network is while it trains: its own greedy texts against references."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.data import Data, Metric, metrics
from bild.errors import InputError
from bild.generation import BigLittleDecoder

METRICS = {"bleu": "sacrebleu", "chrf": "sacrebleu", "rouge1": "rouge_score", "rouge2": "rouge_score",
           "rougeL": "rouge_score", "exact_match": None}  # fmt: skip
"""Dev scores and the package each needs."""
ROWS = 48
"""Texts decoded together."""


class DevScore:
    """Greedy decoding of dev sets and one metric.

    Args:
        sets: by name; every example has a reference.
        metric: ``"bleu"``, ``"chrf"``, ``"rouge1"``, ``"rouge2"``, ``"rougeL"`` or ``"exact_match"``.
        dtype: number format to decode in.
        max_new_tokens: longest text, 1….
        source: ``prefix`` and ``chat``, as for decoding.

    Raises:
        InputError: an unknown metric, one whose package is missing, or an example without a reference.
    """

    def __init__(
        self, sets: Mapping[str, Data], metric: str, *, dtype: torch.dtype, max_new_tokens: int, **source: Any
    ) -> None:
        if metric not in METRICS:
            raise InputError(f"metric is {metric!r}; allowed are {', '.join(METRICS)}")
        needed = METRICS[metric]
        if sets and needed is not None and find_spec(needed) is None:
            raise InputError(f"{needed} is not installed; pip install 'bild[eval]'")
        for name, data in sets.items():
            without = [example.id for example in data.examples if not example.references]
            if without:
                raise InputError(f"dev set {name}, line {without[0]}: no target text; a dev set needs one everywhere")
        self.sets, self.metric, self.dtype = dict(sets), metric, dtype
        self.options = {"max_new_tokens": max_new_tokens, **source}

    def __call__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """The score of each set, 0…100; the network is left as it is."""
        (metric,) = (one for one in metrics() if one.name == self.metric)
        scored = copy.deepcopy(network).to(self.dtype)
        decoder = BigLittleDecoder(scored, scored, tokenizer)
        return {name: self._score(decoder, metric, data) for name, data in self.sets.items()}

    def _score(self, decoder: BigLittleDecoder, metric: Metric, data: Data) -> float:
        # By length, so that rows of a batch are padded little and end together.
        examples = sorted(data.examples, key=lambda example: len(example.source))
        results = decoder.generate_each(
            [example.source for example in examples],
            "large",
            batch_size=ROWS,
            **self.options,
        )
        sums = [0.0] * metric.size
        for example, result in zip(examples, results, strict=True):
            sums = _added(sums, metric.statistics(result.text, example.references))
        score = metric.score(sums)
        return 0.0 if score is None else score


def _added(sums: Sequence[float], more: Sequence[float]) -> list[float]:
    return [one + other for one, other in zip(sums, more, strict=True)]
