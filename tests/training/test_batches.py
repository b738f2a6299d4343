"""Which examples go together, and the tensors they become."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
import torch

from bild.training.batches import CHUNK, IGNORED, Batches, Collator, rounded
from bild.training.corpus import Corpus
from bild.training.losses import Objective
from tests.networks import EOS, PAD, START, build, random_tokens
from tests.training.tiny import recipe


def corpus_of(count: int, seed: int = 0, longest: int = 30) -> Corpus:
    rng, corpus = Random(seed), Corpus()
    for number in range(count):
        sides = [random_tokens(rng, rng.randint(1, longest)) for _ in range(2)]
        corpus.add(f"line {number}", sides[0], [*sides[1], EOS])
    return corpus


def padded(corpus: Corpus, batch: list[int], joined: bool) -> int:
    lengths = [(len(corpus.sources[row]), len(corpus.targets[row])) for row in batch]
    if joined:
        return len(batch) * max(map(sum, lengths))
    return len(batch) * (max(source for source, _ in lengths) + max(target for _, target in lengths))


@pytest.mark.parametrize("joined", [False, True])
def test_every_example_once_an_epoch_and_no_batch_too_large(joined):
    corpus = corpus_of(CHUNK + 500)
    batches = Batches(corpus, recipe(batch_tokens=600), joined=joined)
    for number in range(2):
        epoch = batches.epoch(number)
        assert sorted(row for batch in epoch for row in batch) == list(range(len(corpus)))
        sizes = [padded(corpus, batch, joined) for batch in epoch]
        assert max(sizes) <= 600
        used = sum(len(side[row]) for side in (corpus.sources, corpus.targets) for row in range(len(corpus)))
        assert used / sum(sizes) > 0.75
    assert batches.epoch(0) == batches.epoch(0) != batches.epoch(1)
    assert batches.epoch(0) != Batches(corpus, recipe(batch_tokens=600, seed=1), joined=joined).epoch(0)


def test_an_example_larger_than_a_batch_is_a_batch():
    batches = Batches(corpus_of(20), recipe(batch_tokens=1), joined=False)
    assert Counter(map(len, batches.epoch(0))) == {1: 20}


def test_batches_by_examples():
    batches = Batches(corpus_of(10), recipe(batch_tokens=None, batch_size=4), joined=False)
    assert list(map(len, batches.epoch(0))) == [4, 4, 2]
    assert batches.epoch(0) != batches.epoch(1)


def test_steps_and_what_is_left_of_them():
    corpus = corpus_of(10)
    sized = {"batch_tokens": None, "batch_size": 4}
    assert Batches(corpus, recipe(**sized, max_steps=None, epochs=3), joined=False).steps() == 9
    assert Batches(corpus, recipe(**sized, max_steps=5, epochs=3), joined=False).steps() == 5
    batches = Batches(corpus, recipe(**sized, max_steps=8), joined=False)
    every = [batch for number in range(3) for batch in batches.epoch(number)][:8]
    assert batches.steps() == 8
    for step in range(9):
        assert list(batches.after(step, 8)) == every[step:]


def test_an_encoder_decoder_reads_what_it_has_written():
    corpus = corpus_of(5)
    batch = Collator(corpus, PAD, START)([3, 1])
    for row, number in enumerate([3, 1]):
        source, target = corpus.sources[number].tolist(), corpus.targets[number].tolist()
        width, longest = batch["input_ids"].shape[1], batch["labels"].shape[1]
        rest = [0] * (width - len(source))
        assert batch["input_ids"][row].tolist() == [*source, *rest]
        assert batch["attention_mask"][row].tolist() == [*[1] * len(source), *rest]
        assert batch["labels"][row].tolist() == [*target, *[IGNORED] * (longest - len(target))]
        assert batch["decoder_input_ids"][row, : len(target)].tolist() == [START, *target[:-1]]
    assert batch["rows"].tolist() == [3, 1]


def test_a_decoder_only_network_is_asked_for_the_continuation_only():
    corpus = Corpus()
    corpus.add("a", [2, 3, 4], [5, 6])
    corpus.add("b", [7], [8, 9, 10, EOS])
    batch = Collator(corpus, PAD, None)([0, 1])
    assert batch["input_ids"].tolist() == [[2, 3, 4, 5], [7, 8, 9, 10]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 5, 6], [8, 9, 10, EOS]]


def test_padding_changes_no_loss():
    """Two rows together lose what each loses alone."""
    corpus = corpus_of(6, longest=9)
    for name, start in (("t5", START), ("bart", START), ("gpt2", None), ("llama", None)):
        network, collate = build(name), Collator(corpus, PAD, start)

        def losses(rows, network=network, collate=collate) -> list[float]:
            batch = collate(rows)
            labels = batch.pop("labels")
            batch.pop("rows")
            with torch.no_grad():
                logits = network(**batch, use_cache=False).logits
            each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            return each.sum(1).tolist()

        alone = [loss for row in range(6) for loss in losses([row])]
        assert losses(list(range(6))) == pytest.approx(alone, rel=1e-9), name
        assert np.std(alone) > 0.1


def test_lengths_are_rounded_up_by_a_third_at_most_to_few():
    assert [rounded(length) for length in (1, 4, 5, 16, 17, 20, 21, 33, 64, 65)] == [
        4,
        4,
        8,
        16,
        20,
        20,
        24,
        40,
        64,
        80,
    ]
    assert all(length <= rounded(length) <= max(4, 8, length * 4 / 3) for length in range(1, 600))
    assert len({rounded(length) for length in range(1, 257)}) == 20


@pytest.mark.parametrize("start", [START, None])
def test_few_shapes_change_no_loss(start):
    """Batches filled up to a few shapes: every example once, and the losses of those that are not filled up."""
    corpus, joined = corpus_of(400), start is None
    network = build("gpt2" if joined else "t5")
    batches = Batches(corpus, recipe(batch_tokens=600), joined=joined, few_shapes=True)
    epoch = batches.epoch(0)
    assert sorted(row for batch in epoch for row in batch) == list(range(len(corpus)))
    filled, plain = Collator(corpus, PAD, start, batches.capacity), Collator(corpus, PAD, start)
    shapes = Counter(filled(batch)["labels"].shape for batch in epoch)
    assert len(shapes) <= 10 < len({plain(batch)["labels"].shape for batch in epoch})
    assert all(rows * width <= 600 for rows, width in shapes)
    objective = Objective(network, recipe())
    for batch in epoch[:5]:
        losses = []
        for collate in (filled, plain):
            inputs = collate(batch)
            assert inputs.pop("rows").tolist() == batch
            network.zero_grad()
            loss = objective(**inputs)
            loss.backward()
            losses.append([loss.item(), *(float(weight.grad.norm()) for weight in network.parameters())])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
