"""A checkpoint that classifies a text, as a number from 0 to 1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from bild.errors import InputError, LoadError
from bild.models.loading.checkpoint import read
from bild.models.loading.place import find
from bild.models.loading.tokenizer import load_tokenizer
from bild.models.positions import max_positions, most


class Classifier:
    """How likely a class is, for a text behind another.

    Args:
        network: with a head of classes, or of one number.
        tokenizer: of the network.
        label: the class, by its name in the network's config; None: the last one, as "good" of two. Of a head of one
            number there is none to choose: its logistic function counts.

    Raises:
        InputError: no such class.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: str | None = None) -> None:
        self.network, self.tokenizer = network.eval(), tokenizer
        config: Any = network.config
        names = {str(name): int(at) for at, name in config.id2label.items()}
        count = int(config.num_labels)
        if label is not None and (count == 1 or label not in names):
            allowed = "it has one number and no classes" if count == 1 else f"allowed are {', '.join(names)}"
            raise InputError(f"label is {label!r}; {allowed}")
        self.column = None if count == 1 else count - 1 if label is None else names[label]

    @classmethod
    def load(
        cls,
        name: str | os.PathLike[str],
        *,
        label: str | None = None,
        device: torch.device | str = "cpu",
        trust_remote_code: bool = False,
    ) -> Classifier:
        """Load a checkpoint.

        Args:
            name: a folder or hub name, as of any checkpoint.
            label: see the class.
            device: where the network is put.
            trust_remote_code: whether code that comes with it may run.

        Raises:
            LoadError: it cannot be loaded, classifies nothing, or has no tokenizer.
            InputError: it has no such class.
        """
        place = find(name)
        if place.gguf:
            raise LoadError(f"{name} is a GGUF file, which holds no classifier; give a folder or a hub name")
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        network, report = read(
            AutoModelForSequenceClassification, place, output_loading_info=True, use_safetensors=True, **options
        )
        if report["missing_keys"]:
            missing = min(report["missing_keys"])
            raise LoadError(
                f"{name} is no classifier: its weights lack {missing}; give one that was trained to classify"
            )
        tokenizer = load_tokenizer(name, **options)
        if tokenizer is None:
            raise LoadError(f"{name} has no tokenizer, so its classifier cannot read texts; put one into its folder")
        return cls(network.to(device), tokenizer, label)

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Of the class, for each second text behind its first, 0…1; NaN where the network's scores are.

        A pair that is longer than the network has positions for loses tokens at its longer text's end.
        """
        return [self._probability(first, second) for first, second in pairs]

    def _probability(self, first: str, second: str) -> float:
        # One by one: many a checkpoint of this kind has no token to pad with, and segments that end together are few.
        texts = (first, second) if first else (second,)
        limit = most(max_positions(self.network.config), self.tokenizer.model_max_length)
        cut: dict[str, Any] = {"truncation": "longest_first", "max_length": limit}
        read = self.tokenizer(*texts, return_tensors="pt", **cut).to(self.network.device)
        with torch.inference_mode():
            scores = self.network(**read).logits[0].float()
        return float(scores[0].sigmoid() if self.column is None else scores.softmax(-1)[self.column])
