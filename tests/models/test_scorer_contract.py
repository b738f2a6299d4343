"""What every Scorer owes the loop, by architecture and runtime, against passes without any cache."""

from __future__ import annotations

from random import Random

import pytest
import torch

from tests.early_exits import EXITING, STATIC
from tests.marking import marks_of
from tests.models.rows import ExitKind, Kind, Ragged, SingleRow
from tests.networks import ARCHITECTURES, BATCHING, POSITIONS, VOCAB_SIZE, forward, random_source, random_tokens

SEEDS = range(3)
RUNTIMES = ("eager", "recorded", "static")
EXITS = [(name, "eager") for name in EXITING] + [(name, "static") for name in STATIC]


def kinds(names):
    plain = [Kind(name, runtime) for runtime in RUNTIMES for name in names]
    exits = [ExitKind(name, runtime, side) for name, runtime in EXITS for side in ("small", "large")]
    every = [pytest.param(kind, id=str(kind), marks=marks_of(kind.runtime)) for kind in (*plain, *exits)]
    return pytest.mark.parametrize("kind", every)


every_architecture = kinds(ARCHITECTURES)
every_batching = kinds(BATCHING)


@every_architecture
def test_one_piece_equals_token_by_token_equals_chunks(kind):
    rng = Random(1)
    tokens = random_tokens(rng, 24)
    whole = SingleRow(kind, rng)
    whole.extend(tokens, last=24)
    one_by_one = SingleRow(kind, rng)
    for token in tokens:
        one_by_one.extend([token])
    for _ in SEEDS:
        chunks, left = SingleRow(kind, rng), list(tokens)
        while left:
            count = rng.randint(1, min(9, len(left)))
            chunks.extend(left[:count], last=count)
            del left[:count]


@every_architecture
def test_truncate_then_extend_equals_never_having_read(kind):
    rng = Random(2)
    row = SingleRow(kind, rng)
    for length in range(12):
        row.extend(random_tokens(rng, 12 - len(row.tokens)))
        row.truncate(length)
        new = random_tokens(rng, rng.randint(1, 4))
        row.extend(new, last=len(new))
        row.truncate(length)


@every_architecture
def test_truncate_does_nothing_where_the_row_is_shorter(kind):
    rng = Random(3)
    row = SingleRow(kind, rng)
    row.truncate(5)
    row.extend(random_tokens(rng, 6))
    for length in (6, 7, 100):
        row.truncate(length)
        assert row.scorer.lengths == [6]
    row.extend(random_tokens(rng, 2), last=2)


@every_architecture
@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_of_reading_and_forgetting(kind, seed):
    rng = Random(seed)
    row = SingleRow(kind, rng)
    for _ in range(30):
        if rng.random() < 0.5 and len(row.tokens) < 40:
            count = rng.randint(1, 6)
            row.extend(random_tokens(rng, count), last=rng.randint(1, count))
        else:
            row.truncate(rng.choice([0, 40, max(0, len(row.tokens) - 1), rng.randint(0, len(row.tokens))]))
    row.extend(random_tokens(rng, 1))


@every_architecture
def test_last_positions_are_the_trailing_ones(kind):
    tokens = random_tokens(Random(4), 7)
    for last in range(1, 8):
        row = SingleRow(kind, Random(5))
        row.extend(tokens, last=last)


@every_architecture
@pytest.mark.parametrize("last", [-1, 0, 4])
def test_last_out_of_range_is_refused_and_nothing_read(kind, last):
    rng = Random(6)
    row = SingleRow(kind, rng)
    row.extend(random_tokens(rng, 5))
    row.truncate(3)
    with pytest.raises(ValueError, match=f"cannot score {last} positions of 3 new tokens"):
        row.scorer.extend([random_tokens(rng, 3)], last=last)
    with pytest.raises(ValueError, match="of 0 new tokens"):
        row.scorer.extend([[]])
    row.extend(random_tokens(rng, 3), last=3)


@every_architecture
def test_scores_end_with_the_shared_vocabulary(kind):
    model = kind.load()
    assert model.vocab_size == VOCAB_SIZE
    model.vocab_size = 33
    rng = Random(7)
    source, tokens = random_source(rng, model.network), random_tokens(rng, 5)
    expected = forward(model.network, source, tokens)[-2:, :33]
    torch.testing.assert_close(model.start([source]).extend([tokens], last=2)[0], expected, **kind.tolerance)


@every_architecture
def test_says_whether_rows_can_share_a_batch(kind):
    assert kind.model.batches


@every_architecture
def test_says_how_many_positions_there_are(kind):
    relative = kind.name in ("t5", "mt5")
    assert kind.model.max_positions == (None if relative else POSITIONS)
    assert kind.model.max_source_positions == (POSITIONS if kind.name in ("bart", "marian") else None)


@every_batching
@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_a_batch_equal_single_rows(kind, seed):
    rng = Random(seed)
    batch = Ragged(kind, rng, rows=4)
    for step in range(30):
        rows, act = len(batch.singles), rng.random()
        if act < 0.55 and max(batch.lengths) < POSITIONS - 6:
            counts = [rng.choice([0, 1, 1, 2, 5]) for _ in range(rows)]
            counts[rng.randrange(rows)] = rng.randint(1, 5)
            batch.extend([random_tokens(rng, count) for count in counts], last=rng.randint(1, max(counts)))
        elif act < 0.95:
            batch.truncate(
                [rng.choice([0, 99, length, max(0, length - rng.randint(1, 4))]) for length in batch.lengths]
            )
        elif rows > 2 or (rows > 1 and step > 20):
            batch.keep(sorted(rng.sample(range(rows), rows - 1)))
    batch.extend([random_tokens(rng, 1 + b) for b in range(len(batch.singles))])


@every_batching
def test_prompts_of_different_length(kind):
    rng = Random(8)
    batch = Ragged(kind, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (1, 9, 4)], last=9)
    for _ in range(3):
        batch.extend([random_tokens(rng, 1) for _ in range(3)])


@every_batching
def test_a_row_may_read_its_first_token_later_than_others(kind):
    rng = Random(9)
    batch = Ragged(kind, rng, rows=3)
    batch.extend([random_tokens(rng, 3), [], random_tokens(rng, 1)])
    batch.extend([[], [], random_tokens(rng, 2)])
    batch.extend([random_tokens(rng, 1), random_tokens(rng, 4), []], last=4)
    batch.extend([random_tokens(rng, 2) for _ in range(3)], last=2)


@every_batching
def test_a_row_may_start_over_while_others_go_on(kind):
    rng = Random(10)
    batch = Ragged(kind, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (6, 2, 4)])
    batch.truncate([0, 9, 3])
    batch.extend([[], random_tokens(rng, 3), random_tokens(rng, 1)])
    batch.extend([random_tokens(rng, 2), random_tokens(rng, 1), []])
    batch.truncate([0, 0, 0])
    batch.extend([random_tokens(rng, count) for count in (2, 5, 1)], last=5)


@every_batching
@pytest.mark.parametrize("kept", [[0], [2], [0, 2], [1, 2, 3]])
def test_keep_at_any_time(kind, kept):
    rng = Random(11)
    unread = Ragged(kind, rng, rows=4)
    unread.keep(kept)
    unread.extend([random_tokens(rng, 1 + b) for b in range(len(kept))])
    batch = Ragged(kind, rng, rows=4)
    batch.extend([random_tokens(rng, count) for count in (3, 8, 1, 5)])
    batch.truncate([2, 8, 1, 1])
    batch.keep(kept)
    batch.extend([random_tokens(rng, 2) for _ in kept], last=2)


@every_batching
def test_padding_may_reach_past_the_last_position(kind):
    rng = Random(12)
    batch = Ragged(kind, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (3, POSITIONS - 4, 30)])
    batch.extend([random_tokens(rng, count) for count in (20, 3, 0)], last=3)
    batch.extend([random_tokens(rng, count) for count in (25, 0, 12)])
    batch.truncate([10, POSITIONS - 1, 30])
    batch.extend([random_tokens(rng, count) for count in (8, 1, 2)])
    assert batch.lengths == [18, POSITIONS, 32]


def grow(batch: Ragged, rng: Random, most: int = 5) -> None:
    """Every row reads from 0 to ``most`` tokens, some row at least one."""
    counts = [rng.choice([0, 1, 1, 2, most]) for _ in batch.singles]
    counts[rng.randrange(len(counts))] = rng.randint(1, most)
    batch.extend([random_tokens(rng, count) for count in counts], last=rng.randint(1, max(counts)))


@every_architecture
@pytest.mark.parametrize("seed", SEEDS)
def test_rows_come_go_move_and_are_copied(kind, seed):
    rng = Random(100 + seed)
    batch = Ragged(kind, rng, rows=2)
    for _ in range(30):
        rows, act = len(batch.singles), rng.random()
        if act < 0.5 and max(batch.lengths) < POSITIONS - 6:
            grow(batch, rng)
        elif act < 0.65:
            batch.truncate(
                [rng.choice([0, 99, length, max(0, length - rng.randint(1, 4))]) for length in batch.lengths]
            )
        elif act < 0.8 and rows < 7:
            other = Ragged(kind, rng, rows=rng.randint(1, 2))
            for _ in range(rng.choice([0, 1, 3])):
                grow(other, rng)
            batch.join(other)
        else:
            batch.keep([rng.randrange(rows) for _ in range(rng.randint(1, min(6, rows + 1)))])
    batch.truncate([min(length, POSITIONS - 8) for length in batch.lengths])
    batch.extend([random_tokens(rng, 1 + b) for b in range(len(batch.singles))])


@every_architecture
@pytest.mark.parametrize("read", [(0, 0), (0, 3), (4, 0), (4, 9), (40, 2), (2, 40)])
def test_a_batch_joins_whatever_either_has_read(kind, read):
    rng = Random(21)
    batch, other = Ragged(kind, rng, rows=2), Ragged(kind, rng, rows=2)
    for each, count in zip((batch, other), read, strict=True):
        if count:
            each.extend([random_tokens(rng, count), random_tokens(rng, count // 2)])
    batch.join(other)
    # The first row goes before anybody has asked for the sources of those that came.
    batch.extend([random_tokens(rng, 2), [], random_tokens(rng, 1), []], last=2)
    batch.keep([3, 1, 2, 3])
    batch.extend([random_tokens(rng, 1 + b) for b in range(4)], last=4)


@every_architecture
def test_a_copy_of_rows_and_they_go_on_apart(kind):
    rng = Random(23)
    batch = Ragged(kind, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (5, 12, 3)])
    batch.keep([2, 1])
    copy = batch.copy([1, 0])
    assert (copy is None) == kind.model.is_encoder_decoder
    if copy is None:
        return
    copy.truncate([7, 3])
    for each in (batch, copy, batch, copy):
        each.extend([random_tokens(rng, 2), random_tokens(rng, 1)], last=2)
    batch.keep([0])
    copy.join(batch)
    copy.extend([random_tokens(rng, 40) for _ in range(3)], last=3)


@every_architecture
def test_a_place_that_held_nan_is_taken_by_another_row(kind):
    """One text overflows; neither its neighbours nor whoever gets its place next may see anything of it."""
    rng = Random(22)
    batch = Ragged(kind, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (20, 9, 9)])
    with torch.inference_mode():
        for tensor in storage_of(batch.scorer):
            tensor[0, ..., :20, :] = torch.nan
    batch.keep([1, 2])
    other = Ragged(kind, rng, rows=1)
    other.extend([random_tokens(rng, 2)])
    batch.join(other)
    batch.extend([random_tokens(rng, 3) for _ in range(3)], last=3)
    batch.keep([2, 0, 1, 0])
    batch.extend([random_tokens(rng, 2) for _ in range(4)], last=2)


def storage_of(scorer) -> list[torch.Tensor]:
    """Every tensor of keys and values that a scorer writes."""
    scorers = [scorer._lower, scorer._upper] if hasattr(scorer, "_lower") else [scorer]
    return [tensor for each in scorers for tensor in each._cache.tensors]


@every_architecture
def test_summaries_are_those_of_the_logits(kind):
    rng = Random(23)
    sources = [random_source(rng, kind.network) for _ in range(2)]
    scorer, other = kind.model.start(sources), kind.model.start(sources)
    tokens = [random_tokens(rng, 4), random_tokens(rng, 4)]
    logits, summary = scorer.summarize(tokens, last=2)
    expected = other.extend(tokens, last=2).to(logits.dtype)
    assert logits.dtype in (torch.float32, torch.float64) and logits.shape == expected.shape
    torch.testing.assert_close(logits, expected, **kind.tolerance)
    assert summary.likeliest.equal(logits.argmax(-1))
    torch.testing.assert_close(summary.probability, logits.softmax(-1).amax(-1), **kind.tolerance)
    torch.testing.assert_close(summary.log_total, logits.logsumexp(-1), **kind.tolerance)
