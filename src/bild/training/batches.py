"""Which examples are read together, in what order; and the tensors they become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from bild.training.corpus import Corpus, Ids
from bild.training.recipe import Recipe

CHUNK = 4000
"""Examples that are sorted by length together: enough for batches of like length, few enough to stay random."""
UNBOUNDED = 1 << 40
"""Steps of a run that ends by the clock."""
IGNORED = -100
"""Label of a position that no loss counts."""


class Batches:
    """The batches of a training run, the same ones each time for a corpus and a recipe.

    Args:
        corpus: at least one example.
        recipe: its seed, and how large a batch is.
        joined: whether source and target are one sequence (decoder-only).
    """

    def __init__(self, corpus: Corpus, recipe: Recipe, *, joined: bool) -> None:
        self.recipe, self.joined = recipe, joined
        self.lengths = np.array([list(map(len, corpus.sources)), list(map(len, corpus.targets))]).T
        if joined:
            self.lengths = self.lengths.sum(1, keepdims=True)

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of a pass over the data, counted from 0, as numbers of examples."""
        generator = np.random.default_rng([self.recipe.seed, number])
        order = generator.permutation(len(self.lengths))
        if self.recipe.batch_size is not None:
            return [
                order[at : at + self.recipe.batch_size].tolist() for at in range(0, len(order), self.recipe.batch_size)
            ]
        batches = [batch for at in range(0, len(order), CHUNK) for batch in self._bucket(order[at : at + CHUNK])]
        return [batches[at] for at in generator.permutation(len(batches))]

    def _bucket(self, chunk: NDArray[np.int64]) -> list[list[int]]:
        """A chunk, sorted by length and cut so that no batch has more padded positions than asked for."""
        assert self.recipe.batch_tokens is not None
        lengths = self.lengths[chunk]
        # By the longer side: the least padding, a tenth less than by their sum.
        order = np.lexsort((lengths.sum(1), lengths.max(1)))
        batches: list[list[int]] = [[]]
        widest = np.zeros(lengths.shape[1], dtype=np.int64)
        for example, own in zip(chunk[order].tolist(), lengths[order], strict=True):
            widest = np.maximum(widest, own)
            if batches[-1] and (len(batches[-1]) + 1) * int(widest.sum()) > self.recipe.batch_tokens:
                batches.append([])
                widest = own
            batches[-1].append(example)
        return batches

    def steps(self) -> int:
        """How many batches the recipe asks for, :data:`UNBOUNDED` where it bounds time alone."""
        most, epochs = self.recipe.max_steps, self.recipe.epochs
        if epochs is None:
            return UNBOUNDED if most is None else most
        total = 0
        for number in range(epochs):
            total += len(self.epoch(number))
            if most is not None and total >= most:
                return most
        return total

    def after(self, step: int, steps: int) -> Iterator[list[int]]:
        """The batches from ``step`` to ``steps``, across epochs."""
        at, number = 0, 0
        while at < steps:
            batches = self.epoch(number)
            yield from batches[max(0, step - at) : steps - at]
            at, number = at + len(batches), number + 1

    def remaining(self, step: int, steps: int) -> Sampler[list[int]]:
        """Those batches as a loader takes them, made an epoch at a time."""
        return _Remaining(self, step, steps)


class _Remaining(Sampler[list[int]]):
    def __init__(self, batches: Batches, step: int, steps: int) -> None:
        self.batches, self.step, self.steps = batches, step, steps

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches.after(self.step, self.steps)

    def __len__(self) -> int:
        return self.steps - self.step


class Collator:
    """Turns examples into the tensors of a forward pass and its labels.

    Args:
        corpus: where the examples are.
        pad: token id that fills rows up.
        start: token id an encoder-decoder's decoder begins with; None: decoder-only.
    """

    def __init__(self, corpus: Corpus, pad: int, start: int | None) -> None:
        self.corpus, self.pad, self.start = corpus, pad, start

    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``labels``, for an encoder-decoder ``attention_mask`` and ``decoder_input_ids``, all
        ``[B, T]``, and ``rows``, the examples' numbers."""
        sources, targets = ([side[row] for row in rows] for side in (self.corpus.sources, self.corpus.targets))
        numbers = torch.tensor(rows)
        if self.start is None:
            return self._joined(sources, targets) | {"rows": numbers}
        shifted = [np.concatenate([[self.start], target[:-1]]) for target in targets]
        return {
            "input_ids": _padded(sources, self.pad),
            "attention_mask": _padded([np.ones_like(source) for source in sources], 0),
            "decoder_input_ids": _padded(shifted, self.pad),
            "labels": _padded(targets, IGNORED),
            "rows": numbers,
        }

    def _joined(self, sources: list[Ids], targets: list[Ids]) -> dict[str, Tensor]:
        """Source and target as one sequence; the label of a position is the next token, if that is target."""
        inputs = [np.concatenate([source, target[:-1]]) for source, target in zip(sources, targets, strict=True)]
        labels = [
            np.concatenate([np.full(len(source) - 1, IGNORED), target])
            for source, target in zip(sources, targets, strict=True)
        ]
        return {"input_ids": _padded(inputs, self.pad), "labels": _padded(labels, IGNORED)}


def _padded(rows: Sequence[NDArray[np.integer]], fill: int) -> Tensor:
    """Rows side by side ``[B, T]``, filled up on the right."""
    block = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for row, ids in zip(block, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(block)
