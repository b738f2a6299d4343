"""How good a network is while it trains: its own greedy texts against references."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bild.data import Data, quality_metric
from bild.data.quality import misjudges
from bild.errors import InputError
from bild.generation import BigLittleDecoder

ROWS = {"cpu": 48, "cuda": 256}
"""Texts decoded together, by device."""


class DevScore:
    """Greedy decoding of dev sets and one metric.

    Args:
        sets: by name; every example has a reference.
        metric: ``"bleu"``, ``"chrf"``, ``"rouge1"``, ``"rouge2"``, ``"rougeL"`` or ``"exact_match"``;
            ``"bleu:zh"``: BLEU with one of :data:`bild.data.quality.TOKENIZERS`.
        dtype: number format to decode in.
        max_new_tokens: longest text, 1….
        source: ``prefix`` and ``chat``, as for decoding.

    Raises:
        InputError: an unknown metric, one whose package is missing, or an example without a reference.
    """

    def __init__(
        self, sets: Mapping[str, Data], metric: str, *, dtype: torch.dtype, max_new_tokens: int, **source: Any
    ) -> None:
        self.scorer = quality_metric(metric)
        for name, data in sets.items():
            without = [example.id for example in data.examples if not example.references]
            if without:
                raise InputError(f"dev set {name}, line {without[0]}: no target text; a dev set needs one everywhere")
            wrong = misjudges(self.scorer, (text for example in data.examples for text in example.references))
            if wrong is not None:
                raise InputError(wrong)
        self.sets, self.metric, self.dtype = dict(sets), metric, dtype
        self.options = {"max_new_tokens": max_new_tokens, **source}

    def __call__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        """The score of each set, 0…100; the network is left as it is."""
        scored: Any = copy.deepcopy(network)
        scored.to(self.dtype)
        rows = ROWS.get(network.device.type, ROWS["cpu"])
        decoder = BigLittleDecoder(scored, scored, tokenizer)
        return {name: self._score(decoder, data, rows) for name, data in self.sets.items()}

    def _score(self, decoder: BigLittleDecoder, data: Data, rows: int) -> float:
        # By length, so that rows of a batch are padded little and end together.
        examples = sorted(data.examples, key=lambda example: len(example.source))
        results = decoder.generate_each(
            [example.source for example in examples],
            "large",
            batch_size=rows,
            **self.options,
        )
        metric = self.scorer
        sums = [0.0] * metric.size
        for example, result in zip(examples, results, strict=True):
            sums = _added(sums, metric.statistics(result.text, example.references))
        score = metric.score(sums)
        return 0.0 if score is None else score


def _added(sums: Sequence[float], more: Sequence[float]) -> list[float]:
    return [one + other for one, other in zip(sums, more, strict=True)]
