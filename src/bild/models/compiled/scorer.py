"""One batch being read compiled, on storage of our own (:mod:`bild.models.cache`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from bild.decoding.rows import Halt
from bild.decoding.scorer import Played, Scorer, Take, Turn
from bild.decoding.scores import Summary, widened
from bild.decoding.transfer import to_device
from bild.models.cache import COLUMNS, RowCache, Shape
from bild.models.compiled import ahead, rounds
from bild.models.compiled.calling import MOST_RAGGED, RAGGED
from bild.models.compiled.graphs import summary
from bild.models.compiled.sources import PartOfSources, Sources
from bild.models.eager.scorer import copy_rows, inferring
from bild.models.passes import check_last, numbers_of
from bild.models.short_list import spread

FEWER = 0.75
"""Share of the rows of a pass, from the first to the last that still writes, at which passes are made narrower."""

if TYPE_CHECKING:
    from bild.models.compiled.model import CompiledModel


class CompiledScorer:
    """One batch being read by a :class:`~bild.models.CompiledModel`; see :class:`bild.decoding.Scorer`.

    Args:
        model: what reads it.
        sources: encoder input ids, one list a row; empty lists for a decoder-only model.
        looked_up: the same as the decoder looks them up; None: as its model alone encodes them.
    """

    def __init__(
        self, model: CompiledModel, sources: Sequence[Sequence[int]], looked_up: PartOfSources | None = None
    ) -> None:
        self.model, self.graphs = model, model.graphs
        self._lengths = [0] * len(sources)
        # Our attention, which rows are named for, reads nothing under a mask.
        self._cache = RowCache(
            self._shapes(model), len(sources), COLUMNS, self.graphs.rounded(len(sources)), not self.graphs.has_places
        )
        self.sources: Sources | PartOfSources | None = looked_up
        if looked_up is None and model.is_encoder_decoder:
            self.sources = self._look_up(sources)

    @property
    def lengths(self) -> list[int]:
        return list(self._lengths)

    def extend(self, tokens: Sequence[Sequence[int]], last: int = 1) -> Tensor:
        check_last(tokens, last)
        return self._extend(tokens, last)[0]

    def summarize(self, tokens: Sequence[Sequence[int]], last: int = 1) -> tuple[Tensor, Summary]:
        check_last(tokens, last)
        logits, *of_logits = self._extend(tokens, last)
        # Where ids beyond the shared vocabulary were cut off, so was the summary they took part in.
        return logits, Summary(*of_logits) if of_logits else Summary(*summary(logits)[1:])

    def truncate(self, lengths: Sequence[int]) -> None:
        self._lengths = [min(own, length) for own, length in zip(self._lengths, lengths, strict=True)]

    @inferring
    def keep(self, rows: Sequence[int]) -> None:
        self._lengths = [self._lengths[b] for b in rows]
        self._cache.keep(rows, self._lengths)
        self._keep_sources(rows)

    @inferring
    def join(self, other: CompiledScorer) -> None:
        self._cache.join(other._cache, other._lengths)
        self._lengths += other._lengths
        self._join_sources(other)

    @inferring
    def copy(self, rows: Sequence[int]) -> Self | None:
        """See :class:`~bild.decoding.scorer.Copying`."""
        return copy_rows(self, rows, self.graphs.rounded(len(rows)))

    def prepare(self) -> None:
        """See :func:`bild.decoding.scorer.prepare`: sources are encoded where a core is idle."""
        # A batch's sources take longer than its first drafts, and one by one they are not needed at once.
        is_one = len(self._lengths) == 1
        if is_one and self.sources is not None and self.graphs.encodes_aside and ahead.has_idle_cores():
            self.sources.begin()

    def _shapes(self, model: CompiledModel) -> Sequence[Shape]:
        """Of what it stores."""
        return model.storage

    def _look_up(self, sources: Sequence[Sequence[int]]) -> Sources | PartOfSources | None:
        """The sources of the rows."""
        graphs = self.graphs
        return Sources(sources, graphs.encode_sources, self.model.device, graphs.is_recorded, graphs.has_places)

    def _keep_sources(self, rows: Sequence[int]) -> None:
        if self.sources is not None:
            self.sources.keep(rows)

    def _join_sources(self, other: CompiledScorer) -> None:
        if self.sources is not None and other.sources is not None:
            self.sources.join(other.sources)  # type: ignore[arg-type]

    def widen(self, columns: int) -> None:
        """Make sure that each row has room for so many tokens."""
        self._cache.widen(columns)

    @property
    def columns(self) -> int:
        """Tokens that each row has room for."""
        return self._cache.columns

    @inferring
    def _extend(self, tokens: Sequence[Sequence[int]], last: int) -> Sequence[Tensor]:
        """Logits, and the fields of their summary unless ids were cut off; hidden states where nothing is scored."""
        model, counts = self.model, [len(row) for row in tokens]
        if self.graphs.has_places and _is_ragged(counts):
            scores = self._read_ragged(tokens, last)
        else:
            rows = self._numbers(tokens)
            scores = self._read(rows, last) if model.batches or len(rows) == 1 else self._one_by_one(rows, last)
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        return self._scores_of(scores) if last else scores

    def _scores_of(self, scores: Sequence[Tensor]) -> Sequence[Tensor]:
        """What a graph says of its tokens, for those of the shared vocabulary, in its order."""
        model, logits = self.model, widened(scores[0])
        if model.short_list is not None:
            logits = spread(logits, model.short_list, model.head_size)
        return [logits, *scores[1:]] if logits.shape[-1] == model.vocab_size else (logits[..., : model.vocab_size],)

    @property
    def rolls(self) -> bool:
        """Whether several tokens can be written without returning to the host in between."""
        model = self.model
        return model.writes_alone and (model.batches or len(self._lengths) == 1)

    @inferring
    def roll(self, tokens: Sequence[Sequence[int]], most: int, take: Take, halts: Sequence[Halt | None]) -> list[int]:
        """Write several tokens in one call; see :class:`~bild.decoding.scorer.Rolling`."""
        passes, new, at_once = [0] * len(tokens), list(tokens), self.graphs.at_once
        while any(new):
            room = most - min(passes[b] for b in _reading(new))
            if at_once == 1 and max(map(len, new)) == 1:
                left = self._left(new, halts, passes)
                if left is None:
                    self._roll_on(new, room, take, passes)
                    break
                written, probabilities = self.roll_to(new, left)
            else:
                written, probabilities = self._roll(new, min(room, at_once))
            lengths = self._lengths
            for b, row in enumerate(new):
                if row:
                    passes[b] += len(written[b])
                    taken, goes_on = _taken(take, b, written[b], probabilities[b])
                    lengths[b] += len(row) + taken - 1
                    new[b] = written[b][-1:] if goes_on and passes[b] < most else []
        return passes

    def plays_with(self, small: Scorer) -> bool:
        """Whether rounds can be played in one call; see :class:`~bild.decoding.scorer.Playing`."""
        return type(small) is type(self) is CompiledScorer and rounds.can_play(self, small)

    @inferring
    def play(self, small: CompiledScorer, turns: Sequence[Turn], most: int, patience_s: float) -> list[Played]:
        """See :class:`~bild.decoding.scorer.Playing`."""
        played, small._lengths, self._lengths = rounds.play(self, small, turns, most, patience_s)
        return played

    def _left(
        self, tokens: Sequence[Sequence[int]], halts: Sequence[Halt | None], passes: Sequence[int]
    ) -> list[Halt] | None:
        """Where the rows that read something halt; None if that is not known, or cannot be told the graph."""
        if not self.graphs.rolls:
            return None
        rows = _reading(tokens)
        left = [halt._replace(room=max(1, halt.room - passes[b])) for b in rows if (halt := halts[b]) is not None]
        same = len(left) == len(rows) and all(halt.ends == left[0].ends for halt in left)
        return left if same else None

    def roll_to(
        self, tokens: Sequence[Sequence[int]], halts: Sequence[Halt]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """What each row writes until it halts, in one call, and how probable each token is."""
        lengths, rows = self._lengths, _reading(tokens)
        self.reserve(max(lengths) + max(halt.room for halt in halts))
        _, inputs, numbers = self.part(rows)
        for at, b in enumerate(rows):
            numbers[at, -3:] = lengths[b], 1, tokens[b][0]
        found = self.graphs.roll_to(inputs, halts)
        written: list[list[int]] = [[] for _ in tokens]
        probabilities: list[list[float]] = [[] for _ in tokens]
        for b, row, chances in zip(rows, *found, strict=True):
            written[b], probabilities[b] = row, chances
        return written, probabilities

    @property
    def is_encoding(self) -> bool:
        """Whether its sources are being encoded by another thread."""
        return self.sources is not None and self.sources.are_coming

    def _roll_on(self, new: Sequence[Sequence[int]], most: int, take: Take, passes: list[int]) -> None:
        """Write token after token behind rows that have read all but one: what comes before the pass is done once."""
        lengths, rows = self._lengths, _reading(new)
        self.reserve(max(lengths) + most)
        order, inputs, numbers = self.part(rows)
        for at, b in enumerate(order):
            numbers[at, -3:] = lengths[b], len(new[b]), new[b][0] if new[b] else 0
        for _ in range(most):
            _, likeliest, probability, *_ = self.graphs.run_read(inputs)
            tokens, probabilities, going = likeliest.tolist(), probability.tolist(), []
            for at, b in enumerate(order):
                if numbers[at, -2]:
                    token, lengths[b], passes[b] = tokens[at][0], lengths[b] + 1, passes[b] + 1
                    goes_on = take(b, token, probabilities[at][0])
                    # What a row that stops reads as padding is behind its text.
                    numbers[at, -3:] = lengths[b], goes_on, token
                    if goes_on:
                        going.append(b)
            if not going:
                return
            if len(going) < len(order) and (self.graphs.has_places or going[-1] + 1 - going[0] <= FEWER * len(order)):
                known = dict(zip(order, numbers[:, -3:].tolist(), strict=True))
                order, inputs, numbers = self.part(going)
                for at, b in enumerate(order):
                    numbers[at, -3:] = known[b]

    def part(self, rows: Sequence[int]) -> tuple[Sequence[int], list[Tensor], Any]:
        """The rows of a pass over at least these, its arguments, and the numbers among them, still to be filled in."""
        graphs, count = self.graphs, len(self._lengths)
        source = [] if self.sources is None else self.sources.tensors(rows, count)
        tensors = [*self.placed(count), *source]
        # Rows that cannot be named are those from the first to the last.
        order = rows if graphs.has_places else range(rows[0], rows[-1] + 1)
        if not graphs.has_places and len(order) < count:
            tensors = [tensor[order[0] : order[-1] + 1] for tensor in tensors]
        numbers = torch.zeros(len(order), 3 + graphs.has_places, dtype=torch.long)
        view = numbers.numpy()
        if graphs.has_places:
            places = self._cache.places.of_rows
            view[:, 0] = [places[b] for b in order]
        return order, [numbers, graphs.one, *tensors], view

    def _roll(self, tokens: Sequence[Sequence[int]], steps: int) -> tuple[list[list[int]], list[list[float]]]:
        """What each row writes in so many steps, and how probable each token is."""
        new, storage, source = self._inputs(self._numbers(tokens, steps - 1))
        written, probabilities = self.graphs.roll(new, steps, storage, source)
        return written[: len(tokens)], probabilities[: len(tokens)]

    def _read_ragged(self, tokens: Sequence[Sequence[int]], last: int) -> Sequence[Tensor]:
        """One pass in which each token is a row of its own, so that nothing is padded."""
        self.reserve(max(map(len, tokens)) + max(self._lengths))
        flat = [
            [place, length + at, 1, token]
            for place, length, row in zip(self._cache.places.of_rows, self._lengths, tokens, strict=True)
            for at, token in enumerate(row)
        ]
        ends = np.cumsum([len(row) for row in tokens])
        # Before a row's first token there is no meaning, and any place will do.
        wanted = np.maximum(ends[:, None] - last + np.arange(last), 0)
        source = [] if self.sources is None else self.sources.tensors(_reading(tokens), len(tokens))
        scores = self.graphs.read(torch.tensor(flat), 1, self.placed(len(tokens)), source)
        return [each[:, 0][torch.from_numpy(wanted)] for each in scores]

    def _numbers(self, tokens: Sequence[Sequence[int]], more: int = 0) -> list[list[int]]:
        """See :func:`~bild.models.passes.numbers_of`; with room for what is read, and for more."""
        width = self.graphs.rounded(max(len(row) for row in tokens))
        self.reserve(max(self._lengths) + width + more)
        rows = numbers_of(tokens, self._lengths, width)
        if not self.graphs.has_places:
            return rows
        return [[place, *row] for place, row in zip(self._cache.places.of_rows, rows, strict=True)]

    def reserve(self, columns: int) -> None:
        """Make sure that each row has room for so many tokens, and take it for written."""
        self._cache.reserve(columns)

    def _read(self, rows: list[list[int]], last: int, row: int | None = None) -> Sequence[Tensor]:
        """One pass, of all rows or of one."""
        new, storage, source = self._inputs(rows, row)
        wide = min(self.graphs.rounded(last), new.shape[1] - 2 - self.graphs.has_places) if last else last
        scores = self.graphs.read(new, wide, storage, source)
        if wide == last and new.shape[0] == len(rows):
            return scores
        return [each[: len(rows), wide - last :] for each in scores]

    def _inputs(self, rows: list[list[int]], row: int | None = None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Numbers, storage and source of a pass, padded to as many rows as it has."""
        count = self.graphs.rounded(len(rows))
        counts = 1 + self.graphs.has_places
        needed = [b for b, numbers in enumerate(rows) if numbers[counts]] if row is None else [row]
        padded = [*rows, *[[0] * len(rows[0])] * (count - len(rows))]
        # By way of numpy in half the time.
        new = torch.from_numpy(np.array(padded, dtype=np.int64))
        if not self._cache.zeroed and not self.graphs.is_compiled(new):
            self._cache.clear(self._lengths)
        if not self.graphs.is_recorded:
            new = to_device(new, self.model.device)
        every = count if row is None else len(self._lengths)
        source = [] if self.sources is None else self.sources.tensors(needed, every)
        storage = self.placed(every)
        if row is not None:
            storage, source = ([tensor[row : row + 1] for tensor in tensors] for tensors in (storage, source))
        return new, storage, source

    def placed(self, rows: int) -> list[Tensor]:
        """Keys, then values, of every layer ``[rows, H, L, D]`` as the graph takes them: of all places where it is told
        which are a row's, else of so many rows, free places included."""
        return self._cache.in_places() if self.graphs.has_places else self._cache.side_by_side(rows)

    def _one_by_one(self, rows: list[list[int]], last: int) -> Sequence[Tensor]:
        """Rows that cannot share a pass, each in its own."""
        scored = {b: self._read([numbers], last, b) for b, numbers in enumerate(rows) if numbers[1]}
        nothing = [torch.zeros_like(field) for field in next(iter(scored.values()))]
        return [torch.cat([scored.get(b, nothing)[i] for b in range(len(rows))]) for i in range(len(nothing))]


class StatesScorer(CompiledScorer):
    """One whose graph reads hidden states, too, which another scorer keeps as its last layer, half of them as its keys
    and half as its values."""

    @property
    def keeper(self) -> CompiledScorer:
        """The other scorer, of the same rows."""
        raise NotImplementedError

    def reserve(self, columns: int) -> None:
        super().reserve(columns)
        # The graph reads one storage, so both have its columns.
        self.keeper.widen(self.columns)
        self.widen(self.keeper.columns)

    def placed(self, rows: int) -> list[Tensor]:
        kept, own = self.keeper.placed(rows), super().placed(rows)
        middle = len(own) // 2
        return [*own[:middle], kept[len(kept) // 2 - 1], *own[middle:], kept[-1]]


def _taken(take: Take, row: int, tokens: Sequence[int], probabilities: Sequence[float]) -> tuple[int, bool]:
    """How many of the tokens are taken, and whether the row goes on."""
    for count, (token, probability) in enumerate(zip(tokens, probabilities, strict=True), 1):
        if not take(row, token, probability):
            return count, False
    return len(tokens), True


def _is_ragged(counts: Sequence[int]) -> bool:
    """Whether a pass over so many tokens a row is better made without padding."""
    width = max(counts)
    return width <= MOST_RAGGED and sum(counts) <= RAGGED * len(counts) * width


def _reading(tokens: Sequence[Sequence[int]]) -> list[int]:
    """The rows that get something."""
    return [b for b, row in enumerate(tokens) if row]
