"""Texts that are read at the same time in several threads, on one model: each gets the scores it gets alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest
import torch
from torch import Tensor

from bild.models.compiled import calling as compiled
from tests.early_exits import exit_pair
from tests.marking import with_runtime
from tests.models.rows import Kind
from tests.networks import random_source, random_tokens

THREADS, TEXTS = 8, 24
EAGER = ("t5", "bart", "marian", "gpt2", "llama")
COMPILED = ("t5", "gpt2", "llama")
EXITS = [*with_runtime(("t5", "llama", "gpt2"), "eager"), *with_runtime(("t5", "gpt2"), "static")]


@pytest.fixture(autouse=True)
def _switching_often(monkeypatch) -> Iterator[None]:
    # Passes of more than three tokens run uncompiled in compiled models, as those of more than some hundreds do.
    monkeypatch.setattr(compiled.Graphs, "longest", 3)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def texts(network, seed: int = 0) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Sources and tokens of two rows each, of many lengths."""
    rng = Random(seed)
    return [
        (
            [random_source(rng, network) for _ in range(2)],
            [random_tokens(rng, 12 + rng.randint(0, 20)), random_tokens(rng, 12 + number % 20)],
        )
        for number in range(TEXTS)
    ]


def read(scorer, tokens: list[list[int]]) -> Iterator[Tensor]:
    """All scores of a long first pass, of single steps, of a rollback and of a ragged pass."""
    begins = [len(row) - 8 for row in tokens]
    yield scorer.extend([row[:at] for row, at in zip(tokens, begins, strict=True)], last=2)
    for step in range(3):
        yield scorer.extend([row[at + step : at + step + 1] for row, at in zip(tokens, begins, strict=True)])
    scorer.truncate([begins[0] + 1, begins[1] + 3])
    yield scorer.extend([tokens[0][begins[0] + 1 :], tokens[1][begins[1] + 3 :]], last=3)


def check(run, inputs) -> None:
    alone = [run(*each) for each in inputs]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(lambda each: run(*each), inputs * 2))
    for found, expected in zip(together, alone * 2, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(("name", "runtime"), [*with_runtime(EAGER, "eager"), *with_runtime(COMPILED, "static")])
def test_a_model(name, runtime):
    model = Kind(name, runtime).model
    check(lambda sources, tokens: list(read(model.start(sources), tokens)), texts(model.network))


@pytest.mark.parametrize(("name", "runtime"), EXITS)
def test_both_sides_of_an_early_exit(name, runtime):
    pair = exit_pair(name, runtime)

    def run(sources, tokens):
        large = pair.large.start(sources)
        small = pair.small.beside(large, sources)
        scores: list[Tensor] = []
        begins = [len(row) - 8 for row in tokens]
        for end in (0, 3, 8):
            # The small side reads ahead, the large one goes on from its hidden states.
            for scorer in (small, large):
                unread = [row[at : begin + end] for row, at, begin in zip(tokens, scorer.lengths, begins, strict=True)]
                scores.append(scorer.extend(unread, last=2 if end else 1))
        return scores

    check(run, texts(pair.large.network))


def test_the_network_of_the_user_is_left_as_it_was():
    model = Kind("t5", "eager").load()
    network = model.network
    for module in (network, *network.modules()):
        assert "forward" not in module.__dict__ and "compute_bias" not in module.__dict__
        assert not module._forward_hooks and not module._forward_pre_hooks
    network.train()
    try:
        expected = model.start([[5, 6]]).extend([[3, 4]])
        assert network.training and network.get_decoder().training
        torch.testing.assert_close(model.start([[5, 6]]).extend([[3, 4]]), expected, rtol=0.0, atol=0.0)
    finally:
        network.eval()
