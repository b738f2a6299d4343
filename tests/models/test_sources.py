"""Sources of the compiled runtime that are encoded in another thread, taken in wherever they are needed first."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from bild.models.cache import Places
from bild.models.compiled import ahead
from bild.models.compiled.sources import CALL, Sources, alike

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def inferring():
    with torch.inference_mode():
        yield


class Encoder:
    """Keys that are the tokens, and values that are twice these; remembers who asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []

    def __call__(self, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
        self.calls.append((len(tokens), threading.current_thread().name))
        width = max(map(len, tokens))
        keys = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], dtype=torch.float32)
        return [keys[:, None, :, None], 2 * keys[:, None, :, None]]


def begun(tokens: Sequence[Sequence[int]]) -> tuple[Sources, Encoder]:
    encoder = Encoder()
    sources = Sources(tokens, encoder, CPU)
    sources.begin()
    return sources, encoder


def values(sources: Sources, rows: int) -> list[list[list[float]]]:
    return [each[:, 0, :, 0].tolist() for each in sources.tensors(range(rows), rows)[:2]]


def test_what_was_begun_is_what_would_have_been_encoded():
    sources, encoder = begun([[5, 6, 7]])
    assert values(sources, 1) == [[[5, 6, 7]], [[10, 12, 14]]]
    assert not sources.are_coming and len(encoder.calls) == 1
    assert encoder.calls[0][1].startswith("bild-ahead")


@pytest.mark.parametrize("ahead_of_need", [True, False])
def test_a_source_of_several_texts_is_encoded_once(ahead_of_need):
    encoder = Encoder()
    sources = Sources([[5, 6], [8], [5, 6], [5, 6]], encoder, CPU)
    if ahead_of_need:
        sources.begin()
    keys, _ = values(sources, 4)
    assert [row[:2] for row in keys] == [[5, 6], [8, 0], [5, 6], [5, 6]]
    assert sum(count for count, _ in encoder.calls) == 2


def test_rows_may_go_and_come_before_it_is_there():
    sources, encoder = begun([[5, 6, 7], [8, 9]])
    sources.keep([1])
    assert values(sources, 1)[0][0][:2] == [8, 9]
    other, _ = begun([[3, 4]])
    sources.join(other)
    keys, _ = values(sources, 2)
    assert [row[:2] for row in keys] == [[8, 9], [3, 4]]
    assert encoder.calls[0][0] == 2 and len(encoder.calls) == 1


def test_copies_of_rows_in_places_keep_their_sources():
    """As under beams: rows are copied and go, others come, some before they are encoded."""
    rng = random.Random(3)
    for _ in range(30):
        tokens = [[rng.randint(1, 9)] * rng.randint(1, 5) for _ in range(rng.randint(1, 3))]
        sources = Sources(tokens, Encoder(), CPU, in_places=True)
        places = Places(len(tokens))
        for _ in range(12):
            if rng.random() < 0.3 and len(tokens) < 9:
                new = [[rng.randint(1, 9)] * rng.randint(1, 5)]
                joining = Sources(new, Encoder(), CPU, in_places=True)
                if rng.random() < 0.5:
                    joining.tensors([0], 1)
                sources.join(joining)
                places.join(1)
                tokens += new
            else:
                stay = [rng.randrange(len(tokens)) for _ in range(rng.randint(1, 5))]
                sources.keep(stay)
                places.keep(stay)
                tokens = [tokens[b] for b in stay]
            if rng.random() < 0.6:
                read = sorted(rng.sample(range(len(tokens)), rng.randint(1, len(tokens))))
                keys, twice, mask = sources.tensors(read, len(tokens))
                # The storage of a text has its rows in the same places.
                for b in read:
                    place, row = places.of_rows[b], tokens[b]
                    assert keys[place, 0, : len(row), 0].tolist() == row
                    assert twice[place, 0, : len(row), 0].tolist() == [2 * token for token in row]
                    assert mask[place, 0, 0].tolist() == [at < len(row) for at in range(mask.shape[-1])]


def test_an_encoder_that_fails_fails_where_its_work_is_needed():
    def fail(_: Sequence[Sequence[int]]) -> list[Tensor]:
        raise RuntimeError("no room")

    sources = Sources([[1]], fail, CPU)
    sources.begin()
    with pytest.raises(RuntimeError, match="no room"):
        sources.tensors([0], 1)


def test_products_of_the_other_thread_have_as_many_threads():
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert ahead.begin(torch.get_num_threads).result() == count
            assert ahead.has_idle_cores() == (count < (os.cpu_count() or 1))
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_thread_of_its_own():
    assert ahead.begin(lambda: 1).result() == 1
    child = os.fork()
    if child == 0:
        os._exit(ahead.begin(lambda: 7).result(timeout=30))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_rows_are_looked_up_in_their_places_whenever_they_are_encoded():
    sources = Sources([[5, 6, 7], [8, 9], [4]], Encoder(), CPU, in_places=True)
    sources.keep([2, 1])
    sources.join(Sources([[3, 2, 1]], Encoder(), CPU, in_places=True))
    # The places of storage that was told the same.
    places = [2, 1, 0]
    for needed in ([1], [0, 1, 2]):
        keys, _, mask = sources.tensors(needed, 3)
        for b in needed:
            own, seen = sources.tokens[b], mask[places[b], 0, 0].tolist()
            assert keys[places[b], 0, : len(own), 0].tolist() == own and seen == [True] * len(own) + [False] * (
                3 - len(own)
            )


def test_sources_of_like_length_are_encoded_together():
    tokens = [[1] * 40, [4, 5, 6], [2, 3], [7] * 41]
    encoder = Encoder()
    sources = Sources(tokens, encoder, CPU)
    keys, _ = values(sources, 4)
    assert [count for count, _ in encoder.calls] == [2, 2]
    assert [row[: len(own)] for row, own in zip(keys, tokens, strict=True)] == tokens
    assert all(not any(row[len(own) :]) for row, own in zip(keys, tokens, strict=True))


def test_rows_stay_in_their_places_where_all_are_encoded_together():
    tokens = [[4, 5, 6], [2, 3], [7]]
    encoder = Encoder()
    keys, _ = values(Sources(tokens, encoder, CPU), 3)
    assert len(encoder.calls) == 1
    assert [row[: len(own)] for row, own in zip(keys, tokens, strict=True)] == tokens


def partitions(order: Sequence[int]) -> Iterator[list[list[int]]]:
    if not order:
        yield []
    for end in range(1, len(order) + 1):
        for rest in partitions(order[end:]):
            yield [list(order[:end]), *rest]


def test_no_other_groups_cost_less():
    draws = random.Random(0)
    for _ in range(50):
        lengths = [draws.randint(1, 60) for _ in range(draws.randint(1, 8))]

        def cost(groups: list[list[int]], lengths: list[int] = lengths) -> int:
            return sum(len(group) * max(lengths[b] for b in group) + CALL for group in groups)

        found = alike(lengths)
        assert sorted(b for group in found for b in group) == list(range(len(lengths)))
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        assert cost(found) == min(map(cost, partitions(order)))
