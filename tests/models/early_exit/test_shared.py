"""Both sides of an exit read one text: each scores as if it were alone, and no layer reads a token twice."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from random import Random

import pytest
import torch

from tests.early_exits import EXIT, EXITING, STATIC, exit_pair
from tests.marking import with_runtime
from tests.models.rows import ExitKind
from tests.networks import forward, random_source, random_tokens

RUNTIMES = [*with_runtime(EXITING, "eager"), *with_runtime(STATIC, "static")]

every_runtime = pytest.mark.parametrize(("name", "runtime"), RUNTIMES)
every_architecture = pytest.mark.parametrize("name", EXITING)


class BothSides:
    """The two scorers of a batch beside the tokens each row has; checks every answer either gives."""

    def __init__(self, name: str, runtime: str, rng: Random, rows: int) -> None:
        self.kinds = {side: ExitKind(name, runtime, side) for side in ("small", "large")}
        pair = exit_pair(name, runtime)
        self.sources = [random_source(rng, pair.large.network) for _ in range(rows)]
        self.large = pair.large.start(self.sources)
        self.small = pair.small.beside(self.large, self.sources)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]

    def read(self, side: str, most: list[int], last: int = 9) -> None:
        """One side reads at most so many of the tokens it has not read."""
        scorer, kind = getattr(self, side), self.kinds[side]
        unread = [row[at:][:count] for row, at, count in zip(self.tokens, scorer.lengths, most, strict=True)]
        if not any(unread):
            return
        expected = [at + len(new) for at, new in zip(scorer.lengths, unread, strict=True)]
        logits = scorer.extend(unread, last=min(last, max(map(len, unread))))
        assert scorer.lengths == expected
        for row, source, tokens, new, end in zip(logits, self.sources, self.tokens, unread, expected, strict=True):
            if new:
                common = min(len(new), len(row))
                whole = forward(kind.network, source, tokens[:end])[-common:]
                torch.testing.assert_close(row[-common:], whole, **kind.tolerance)

    def truncate(self, side: str, lengths: list[int]) -> None:
        getattr(self, side).truncate(lengths)
        for row, length in zip(self.tokens, lengths, strict=True):
            del row[length:]
        for scorer in (self.small, self.large):
            assert all(at <= len(row) for at, row in zip(scorer.lengths, self.tokens, strict=True))

    def keep(self, rows: list[int]) -> None:
        self.large.keep(rows)
        self.small.keep(rows)
        self.sources, self.tokens = [self.sources[b] for b in rows], [self.tokens[b] for b in rows]


@every_runtime
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_reading_and_forgetting_on_either_side(name, runtime, seed):
    rng = Random(seed)
    both = BothSides(name, runtime, rng, rows=3)
    for step in range(40):
        rows, side = len(both.tokens), rng.choice(["small", "large"])
        for row in both.tokens:
            row += random_tokens(rng, rng.choice([0, 1, 1, 4]) if len(row) < 40 else 0)
        act = rng.random()
        if act < 0.7:
            both.read(side, [rng.choice([0, 1, 3, 99]) for _ in range(rows)], last=rng.randint(1, 9))
        elif act < 0.95:
            both.truncate(side, [max(0, len(row) - rng.choice([0, 0, 1, 3, 9])) for row in both.tokens])
        elif rows > 1 and step > 15:
            both.keep(sorted(rng.sample(range(rows), rows - 1)))
    for side in ("small", "large"):
        both.read(side, [99] * len(both.tokens))


@every_runtime
def test_both_sides_take_turns_as_the_loop_does(name, runtime):
    rng = Random(4)
    both = BothSides(name, runtime, rng, rows=2)
    for row in both.tokens:
        row += random_tokens(rng, 3)
    for _ in range(6):
        committed = [len(row) for row in both.tokens]
        for _ in range(4):
            both.read("small", [99, 99])
            for row in both.tokens:
                row += random_tokens(rng, 1)
        both.read("large", [99, 99])
        for side in ("large", "small"):
            both.truncate(side, [length + rng.choice([0, 2, 3]) for length in committed])
        for row in both.tokens:
            row += random_tokens(rng, 1)


class Counted:
    """Counts the tokens that each decoder layer of an eager exit reads."""

    def __init__(self, pair) -> None:
        self.tokens: Counter[int] = Counter()
        self.heads, self.hooks = 0, []
        for piece, first in ((pair.small.parts.small, 0), (pair.small.parts.upper, EXIT)):
            (layers,) = [m for m in piece.get_decoder().children() if isinstance(m, torch.nn.ModuleList)]
            for index, layer in enumerate(layers, first):
                self.hooks.append(layer.register_forward_hook(self._counter(index)))
            self.hooks.append(piece.get_output_embeddings().register_forward_hook(self._count_head))

    def _counter(self, index: int):
        def count(_, inputs, __):
            self.tokens[index] += inputs[0].shape[0] * inputs[0].shape[1]

        return count

    def _count_head(self, _, __, output):
        # What comes out: the head chooses by itself which of the positions it is handed it scores.
        self.heads += output.shape[0] * output.shape[1]

    def by(self, act) -> tuple[list[int], int]:
        """Tokens that each layer, and the head, reads in a call."""
        self.tokens.clear()
        self.heads = 0
        act()
        return [self.tokens[index] for index in range(len(self.hooks) - 2)], self.heads


@every_architecture
def test_no_layer_reads_a_token_twice(name):
    pair, rng = exit_pair(name, "eager"), Random(5)
    counted = Counted(pair)
    above = len(counted.hooks) - 2 - EXIT
    sources, tokens = [random_source(rng, pair.large.network)], random_tokens(rng, 20)
    try:
        large = pair.large.start(sources)
        small = pair.small.beside(large, sources)
        assert counted.by(lambda: small.extend([tokens[:4]]))[0] == [4] * EXIT + [0] * above
        for at in range(4, 9):
            assert counted.by(lambda at=at: small.extend([[tokens[at]]])) == ([1] * EXIT + [0] * above, 1)
        # The last token of the draft is the only one the small model has not read.
        assert counted.by(lambda: large.extend([tokens[:10]], last=10)) == ([1] * EXIT + [10] * above, 10)
        for scorer in (large, small):
            scorer.truncate([7])
        assert counted.by(lambda: small.extend([tokens[7:9]]))[0] == [2] * EXIT + [0] * above
        assert counted.by(lambda: large.extend([tokens[7:9]], last=2)) == ([0] * EXIT + [2] * above, 2)
    finally:
        for hook in counted.hooks:
            hook.remove()


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_a_source_is_encoded_once_and_each_layer_asks_for_its_keys_once(name):
    pair, passes, hooks = exit_pair(name, "eager"), Counter(), []
    parts = pair.small.parts
    for piece in (parts.small, parts.upper):
        hooks.append(piece.get_encoder().register_forward_hook(lambda *_: passes.update(["encoder"])))
        for module in piece.get_decoder().modules():
            if type(module).__name__.endswith("LayerCrossAttention"):
                keys = module.EncDecAttention.k
                hooks.append(keys.register_forward_hook(lambda *_: passes.update(["keys"])))
    try:
        large = pair.large.start([[5, 6, 7]])
        small = pair.small.beside(large, [[5, 6, 7]])
        assert not passes
        for length in range(1, 9):
            small.extend([[length]])
            large.extend([[length]])
            for scorer in (large, small):
                scorer.truncate([length])
    finally:
        for hook in hooks:
            hook.remove()
    assert passes == {"encoder": 1, "keys": len(hooks) - 2}


@every_runtime
def test_a_finished_batch_is_freed_at_once(name, runtime):
    """Caches are large, and Python looks for cycles when many small objects have been made."""
    pair = exit_pair(name, runtime)
    source = random_source(Random(6), pair.large.network)
    large = pair.large.start([source])
    small = pair.small.beside(large, [source])
    small.extend([[5, 6]])
    large.extend([[5, 6, 7]])
    pieces = [weakref.ref(large._lower), weakref.ref(large._upper)]
    gc.disable()
    try:
        del large, small
        assert [piece() for piece in pieces] == [None, None]
    finally:
        gc.enable()
