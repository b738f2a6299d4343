"""What every Scorer owes the loop, architecture by architecture, against passes without any cache."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import torch

from bild.errors import LoadError
from bild.models import EagerModel, EagerScorer
from tests.networks import (
    ARCHITECTURES,
    BATCHING,
    ENCODER_DECODERS,
    OTHERS,
    POSITIONS,
    VOCAB_SIZE,
    build,
    build_other,
    forward,
    random_source,
    random_tokens,
    shared,
)

EXACTLY = {"rtol": 0.0, "atol": 1e-9}
SEEDS = range(3)

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_batching = pytest.mark.parametrize("name", BATCHING)


@cache
def model_of(name: str) -> EagerModel:
    return EagerModel(shared(name))


class SingleRow:
    """A scorer of one row beside the tokens it should have read; checks every answer it gives."""

    def __init__(self, name: str, rng: Random) -> None:
        self.network = shared(name)
        self.source = random_source(rng, self.network)
        self.scorer = model_of(name).start([self.source])
        self.tokens: list[int] = []

    def extend(self, new: list[int], last: int = 1) -> None:
        logits = self.scorer.extend([new], last=last)
        self.tokens += new
        assert self.scorer.lengths == [len(self.tokens)]
        torch.testing.assert_close(logits[0], forward(self.network, self.source, self.tokens)[-last:], **EXACTLY)

    def truncate(self, length: int) -> None:
        self.scorer.truncate([length])
        del self.tokens[length:]
        assert self.scorer.lengths == [len(self.tokens)]


class Ragged:
    """A batch beside single-row scorers that are fed the same; checks that they agree."""

    def __init__(self, name: str, rng: Random, rows: int) -> None:
        model = model_of(name)
        sources = [random_source(rng, model.network) for _ in range(rows)]
        self.scorer = model.start(sources)
        self.singles = [model.start([source]) for source in sources]

    @property
    def lengths(self) -> list[int]:
        return [single.lengths[0] for single in self.singles]

    def extend(self, tokens: list[list[int]], last: int = 1) -> None:
        logits = self.scorer.extend(tokens, last=last)
        assert logits.shape == (len(tokens), last, VOCAB_SIZE)
        for row, new, single in zip(logits, tokens, self.singles, strict=True):
            if new:
                common = min(last, len(new))
                torch.testing.assert_close(row[-common:], single.extend([new], last=common)[0], **EXACTLY)
        assert self.scorer.lengths == self.lengths

    def truncate(self, lengths: list[int]) -> None:
        self.scorer.truncate(lengths)
        for length, single in zip(lengths, self.singles, strict=True):
            single.truncate([length])
        assert self.scorer.lengths == self.lengths

    def keep(self, rows: list[int]) -> None:
        self.scorer.keep(rows)
        self.singles = [self.singles[b] for b in rows]
        assert self.scorer.lengths == self.lengths


def columns(scorer: EagerScorer) -> int:
    (count,) = {layer.keys.shape[2] for layer in scorer._cache.layers}
    return count


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one - other).abs().max().item() > 1e-6


@every_architecture
def test_the_networks_tell_prefixes_and_seeds_apart(name):
    network, rng = shared(name), Random(0)
    source, tokens = random_source(rng, network), random_tokens(rng, 12)
    last = forward(network, source, tokens)[-1]
    assert last.softmax(-1).max() > 2 / VOCAB_SIZE
    assert differ(last, forward(shared(name, seed=1), source, tokens)[-1])
    # Two layers with a window of 4 see 2 × 3 tokens back.
    reach = 7 if name == "mistral" else 12
    for at in range(12):
        changed = [*tokens[:at], tokens[at] % (VOCAB_SIZE - 2) + 2, *tokens[at + 1 :]]
        assert differ(last, forward(network, source, changed)[-1]) == (at >= 12 - reach), at
    if source:
        assert differ(last, forward(network, [*source, 5], tokens)[-1])


@every_architecture
def test_one_piece_equals_token_by_token_equals_chunks(name):
    rng = Random(1)
    tokens = random_tokens(rng, 24)
    whole = SingleRow(name, rng)
    whole.extend(tokens, last=24)
    one_by_one = SingleRow(name, rng)
    for token in tokens:
        one_by_one.extend([token])
    for _ in SEEDS:
        chunks, left = SingleRow(name, rng), list(tokens)
        while left:
            count = rng.randint(1, min(9, len(left)))
            chunks.extend(left[:count], last=count)
            del left[:count]


@every_architecture
def test_truncate_then_extend_equals_never_having_read(name):
    rng = Random(2)
    row = SingleRow(name, rng)
    for length in range(12):
        row.extend(random_tokens(rng, 12 - len(row.tokens)))
        row.truncate(length)
        new = random_tokens(rng, rng.randint(1, 4))
        row.extend(new, last=len(new))
        row.truncate(length)


@every_architecture
def test_truncate_does_nothing_where_the_row_is_shorter(name):
    rng = Random(3)
    row = SingleRow(name, rng)
    row.truncate(5)
    row.extend(random_tokens(rng, 6))
    for length in (6, 7, 100):
        row.truncate(length)
        assert row.scorer.lengths == [6]
    row.extend(random_tokens(rng, 2), last=2)


@every_architecture
@pytest.mark.parametrize("seed", SEEDS)
def test_any_order_of_reading_and_forgetting(name, seed):
    rng = Random(seed)
    row = SingleRow(name, rng)
    for _ in range(30):
        if rng.random() < 0.5 and len(row.tokens) < 40:
            count = rng.randint(1, 6)
            row.extend(random_tokens(rng, count), last=rng.randint(1, count))
        else:
            row.truncate(rng.choice([0, 40, max(0, len(row.tokens) - 1), rng.randint(0, len(row.tokens))]))
    row.extend(random_tokens(rng, 1))


@every_architecture
def test_last_positions_are_the_trailing_ones(name):
    tokens = random_tokens(Random(4), 7)
    for last in range(1, 8):
        row = SingleRow(name, Random(5))
        row.extend(tokens, last=last)


@every_architecture
@pytest.mark.parametrize("last", [-1, 0, 4])
def test_last_out_of_range_is_refused_and_nothing_read(name, last):
    rng = Random(6)
    row = SingleRow(name, rng)
    row.extend(random_tokens(rng, 5))
    row.truncate(3)
    with pytest.raises(ValueError, match=f"cannot score {last} positions of 3 new tokens"):
        row.scorer.extend([random_tokens(rng, 3)], last=last)
    with pytest.raises(ValueError, match="of 0 new tokens"):
        row.scorer.extend([[]])
    row.extend(random_tokens(rng, 3), last=3)


@every_architecture
def test_scores_end_with_the_shared_vocabulary(name):
    model = EagerModel(shared(name))
    assert model.vocab_size == VOCAB_SIZE
    model.vocab_size = 33
    rng = Random(7)
    source, tokens = random_source(rng, model.network), random_tokens(rng, 5)
    expected = forward(model.network, source, tokens)[-2:, :33]
    torch.testing.assert_close(model.start([source]).extend([tokens], last=2)[0], expected, **EXACTLY)


@every_architecture
def test_says_whether_rows_can_share_a_batch(name):
    assert model_of(name).batches is (name not in ("bart", "marian"))


@every_architecture
def test_says_how_many_positions_there_are(name):
    relative = name in ("t5", "mt5")
    assert model_of(name).max_positions == (None if relative else POSITIONS)
    assert model_of(name).max_source_positions == (POSITIONS if name in ("bart", "marian") else None)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encodes_once_and_not_before_the_first_token(name):
    model, passes = model_of(name), []
    hook = model.network.get_encoder().register_forward_hook(lambda *_: passes.append(1))
    scorer = model.start([[5, 6, 7]])
    scorer.truncate([0])
    assert not passes
    for token in (3, 4, 5):
        scorer.extend([[token]])
        scorer.truncate([1])
    hook.remove()
    assert len(passes) == 1


@every_batching
@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_a_batch_equal_single_rows(name, seed):
    rng = Random(seed)
    batch = Ragged(name, rng, rows=4)
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
def test_prompts_of_different_length(name):
    rng = Random(8)
    batch = Ragged(name, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (1, 9, 4)], last=9)
    for _ in range(3):
        batch.extend([random_tokens(rng, 1) for _ in range(3)])


@every_batching
def test_a_row_may_read_its_first_token_later_than_others(name):
    rng = Random(9)
    batch = Ragged(name, rng, rows=3)
    batch.extend([random_tokens(rng, 3), [], random_tokens(rng, 1)])
    batch.extend([[], [], random_tokens(rng, 2)])
    batch.extend([random_tokens(rng, 1), random_tokens(rng, 4), []], last=4)
    batch.extend([random_tokens(rng, 2) for _ in range(3)], last=2)


@every_batching
def test_a_row_may_start_over_while_others_go_on(name):
    rng = Random(10)
    batch = Ragged(name, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (6, 2, 4)])
    batch.truncate([0, 9, 3])
    batch.extend([[], random_tokens(rng, 3), random_tokens(rng, 1)])
    batch.extend([random_tokens(rng, 2), random_tokens(rng, 1), []])
    batch.truncate([0, 0, 0])
    batch.extend([random_tokens(rng, count) for count in (2, 5, 1)], last=5)


@every_batching
@pytest.mark.parametrize("kept", [[0], [2], [0, 2], [1, 2, 3]])
def test_keep_at_any_time(name, kept):
    rng = Random(11)
    unread = Ragged(name, rng, rows=4)
    unread.keep(kept)
    unread.extend([random_tokens(rng, 1 + b) for b in range(len(kept))])
    batch = Ragged(name, rng, rows=4)
    batch.extend([random_tokens(rng, count) for count in (3, 8, 1, 5)])
    batch.truncate([2, 8, 1, 1])
    batch.keep(kept)
    batch.extend([random_tokens(rng, 2) for _ in kept], last=2)


@every_batching
def test_padding_may_reach_past_the_last_position(name):
    rng = Random(12)
    batch = Ragged(name, rng, rows=3)
    batch.extend([random_tokens(rng, count) for count in (3, POSITIONS - 4, 30)])
    batch.extend([random_tokens(rng, count) for count in (20, 3, 0)], last=3)
    batch.extend([random_tokens(rng, count) for count in (25, 0, 12)])
    batch.truncate([10, POSITIONS - 1, 30])
    batch.extend([random_tokens(rng, count) for count in (8, 1, 2)])
    assert batch.lengths == [18, POSITIONS, 32]


@every_batching
def test_the_cache_does_not_grow_by_rollbacks(name):
    rng = Random(13)
    scorer = model_of(name).start([random_source(rng, model_of(name).network) for _ in range(4)])
    read, widest = 0, 0
    for _ in range(60):
        counts = [rng.randint(0, 5) for _ in range(3)] + [5]
        scorer.extend([random_tokens(rng, count) for count in counts])
        read += max(counts)
        widest = max(widest, columns(scorer))
        assert columns(scorer) <= max(scorer.lengths) + max(counts)
        scorer.truncate([min(20, max(0, length - rng.randint(0, 5))) for length in scorer.lengths])
    assert read == 300
    assert widest <= 30


@every_batching
def test_the_cache_shrinks_with_its_longest_row(name):
    rng = Random(14)
    batch = Ragged(name, rng, rows=2)
    batch.extend([random_tokens(rng, 40), random_tokens(rng, 3)])
    batch.keep([1])
    batch.extend([random_tokens(rng, 2)])
    assert columns(batch.scorer) == 5


@pytest.mark.parametrize("name", BATCHING)
def test_eager_attention_in_a_batch(name):
    model = EagerModel(build(name, attn_implementation="eager"))
    rng = Random(15)
    sources = [random_source(rng, model.network) for _ in range(2)]
    prompts = [random_tokens(rng, 2), random_tokens(rng, 9)]
    logits = model.start(sources).extend(prompts)
    for row, source, prompt in zip(logits, sources, prompts, strict=True):
        # Eager attention takes its softmax in float32, whatever the dtype.
        torch.testing.assert_close(row[-1], forward(model.network, source, prompt)[-1], rtol=0, atol=1e-4)


REFUSED = ("openai-gpt", "xlnet", "fsmt", "prophetnet")


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_architecture_is_refused_or_right(name):
    network = build_other(name)
    if name in REFUSED:
        with pytest.raises(LoadError, match="cannot verify drafts"):
            EagerModel(network)
        return
    try:
        model = EagerModel(network)
    except LoadError:
        assert name == "umt5"  # cached passes of several tokens are wrong in transformers 5.17
        return
    assert name != "roberta" or not model.batches
    rng = Random(16)
    rows = 2 if model.batches else 1
    sources = [random_source(rng, network) for _ in range(rows)]
    scorer = model.start(sources)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    for counts in ((3, 7), (4, 1), (2, 3)):
        new = [random_tokens(rng, count) for count in counts[:rows]]
        logits = scorer.extend(new)
        for row, written, more, source in zip(logits, tokens, new, sources, strict=True):
            written += more
            torch.testing.assert_close(row[-1], forward(network, source, written)[-1], rtol=0, atol=1e-3)
            del written[-1:]
        scorer.truncate([len(written) for written in tokens])
