"""Which examples are read together, in what order; and the tensors they become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from bild.training.corpus import Corpus, Ids
from bild.training.recipe import Recipe

CHUNK = 4000
"""Examples that are sorted by length together, at least: enough for batches of like length, few enough to stay
random. Batches of many positions need more."""
UNBOUNDED = 1 << 40
"""Steps of a run that ends by the clock."""
Numbers = NDArray[np.int64]
IGNORED = -100
"""Label of a position that no loss counts."""


class Batches:
    """The batches of a training run, the same ones each time for a corpus and a recipe.

    Args:
        corpus: at least one example.
        recipe: its seed, and how large a batch is.
        joined: whether source and target are one sequence (decoder-only).
        few_shapes: whether lengths count as :func:`rounded`, both sides as the longer one.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe, *, joined: bool, few_shapes: bool = False) -> None:
        self.recipe, self.joined = recipe, joined
        self.lengths = np.array([list(map(len, corpus.sources)), list(map(len, corpus.targets))]).T
        if joined:
            self.lengths = self.lengths.sum(1, keepdims=True)
        if few_shapes:
            self.lengths[:] = [[rounded(longest)] for longest in self.lengths.max(1).tolist()]

    def capacity(self, width: int) -> int:
        """Most rows of a batch whose sides have this length."""
        if self.recipe.batch_size is not None:
            return self.recipe.batch_size
        assert self.recipe.batch_tokens is not None
        return max(1, self.recipe.batch_tokens // (width * int(self.lengths.shape[1])))

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of a pass over the data, counted from 0, as numbers of examples."""
        generator = np.random.default_rng([self.recipe.seed, number])
        order = generator.permutation(len(self.lengths))
        if self.recipe.batch_size is not None:
            return [
                order[at : at + self.recipe.batch_size].tolist() for at in range(0, len(order), self.recipe.batch_size)
            ]
        chunk = max(CHUNK, self.recipe.batch_tokens or 0)
        batches = [batch for at in range(0, len(order), chunk) for batch in self._bucket(order[at : at + chunk])]
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


def rounded(length: int) -> int:
    """A length as one of few, at most a third longer: multiples of 4, then four for each power of two."""
    step = max(4, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


class Collator:
    """Turns examples into the tensors of a forward pass and its labels.

    Args:
        corpus: where the examples are.
        pad: token id that fills rows up.
        start: token id an encoder-decoder's decoder begins with; None: decoder-only.
        capacity: rows of a batch by its length: batches are filled up to them and lengths are :func:`rounded`, so
            that there are few shapes. None: batches are as large as their examples.
    """

    def __init__(
        self, corpus: Corpus, pad: int, start: int | None, capacity: Callable[[int], int] | None = None
    ) -> None:
        self.pad, self.start, self.capacity = pad, start, capacity
        if start is None:
            both = zip(corpus.sources, corpus.targets, strict=True)
            self.sides = [_Side([np.concatenate(pair) for pair in both])]
            self.prompts = np.array([len(source) for source in corpus.sources])
        else:
            self.sides = [_Side(corpus.sources), _Side(corpus.targets)]

    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """``input_ids``, ``labels``, for an encoder-decoder ``attention_mask`` and ``decoder_input_ids``, all
        ``[B, T]``, and ``rows``, the examples' numbers."""
        numbers = np.array(rows)
        arrays = self._joined(numbers) if self.start is None else self._apart(numbers)
        return {name: torch.from_numpy(array) for name, array in (arrays | {"rows": numbers}).items()}

    def _apart(self, numbers: Numbers) -> dict[str, Numbers]:
        widths = [int(side.lengths[numbers].max()) for side in self.sides]
        (source, is_source), (target, is_target) = self._blocks(numbers, widths)
        read = np.full_like(target, self.start)
        read[:, 1:] = np.where(is_target, target, self.pad)[:, :-1]
        # A row that nothing is in is read, too: attention to no position at all is not a number.
        is_source[len(numbers) :, 0] = True
        return {
            "input_ids": np.where(is_source, source, self.pad),
            "attention_mask": is_source.astype(np.int64),
            "decoder_input_ids": read,
            "labels": np.where(is_target, target, IGNORED),
        }

    def _joined(self, numbers: Numbers) -> dict[str, Numbers]:
        """Source and target as one sequence; the label of a position is the next token, if that is target."""
        ((ids, is_there),) = self._blocks(numbers, [int(self.sides[0].lengths[numbers].max())])
        is_target = is_there.copy()
        is_target[: len(numbers)] &= np.arange(ids.shape[1]) >= self.prompts[numbers][:, None]
        is_read = is_there[:, 1:]
        return {
            "input_ids": np.where(is_read, ids[:, :-1], self.pad),
            "labels": np.where(is_target[:, 1:], ids[:, 1:], IGNORED),
        }

    def _blocks(self, numbers: Numbers, widths: list[int]) -> list[tuple[Numbers, NDArray[np.bool_]]]:
        """Each side's ids ``[B, T]`` and where there are any."""
        rows = len(numbers)
        if self.capacity is not None:
            width = rounded(max(widths))
            widths, rows = [width] * len(widths), max(rows, self.capacity(width))
        return [side.block(numbers, rows, width) for side, width in zip(self.sides, widths, strict=True)]


class _Side:
    """Token ids of all examples in one row, so that a batch is one look-up."""

    def __init__(self, texts: Sequence[Ids]) -> None:
        self.lengths = np.array([len(text) for text in texts])
        self.starts = self.lengths.cumsum() - self.lengths
        self.flat = np.concatenate(texts)

    def block(self, numbers: Numbers, rows: int, width: int) -> tuple[Numbers, NDArray[np.bool_]]:
        """Ids of some examples ``[rows, width]`` and where there are any."""
        ids, is_there = np.zeros((rows, width), dtype=np.int64), np.zeros((rows, width), dtype=np.bool_)
        places = np.arange(width)
        is_there[: len(numbers)] = places < self.lengths[numbers][:, None]
        found = np.minimum(self.starts[numbers][:, None] + places, len(self.flat) - 1)
        ids[: len(numbers)] = self.flat[found]
        return ids, is_there
