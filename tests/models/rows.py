"""Scorers of one row and of several, each beside what checks every answer it gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random

import torch
from transformers import PreTrainedModel

from bild.models import EagerModel
from tests.compiled import compile_anew, network_of, recorded, static_model
from tests.early_exits import exit_pair
from tests.networks import VOCAB_SIZE, forward, random_source, shared


@cache
def _eager_model(name: str) -> EagerModel:
    return EagerModel(shared(name))


@cache
def _recorded_model(name: str) -> EagerModel:
    return recorded(shared(name))


MODELS = {"eager": _eager_model, "static": static_model, "recorded": _recorded_model}


@dataclass(frozen=True)
class Kind:
    """An architecture and what runs it: eager and recorded in float64, where rounding hides nothing, static in float32.

    Recorded is what a GPU runs; elsewhere all of it but the recording itself.
    """

    name: str
    runtime: str

    def __str__(self) -> str:
        return f"{self.name}-{self.runtime}"

    @property
    def network(self) -> PreTrainedModel:
        return network_of(self.name) if self.runtime == "static" else shared(self.name)

    @property
    def model(self) -> EagerModel:
        """One a run; nobody may change it."""
        return MODELS[self.runtime](self.name)

    def load(self) -> EagerModel:
        """Another one, to be changed."""
        return (
            {"eager": EagerModel, "recorded": recorded}[self.runtime](self.network)
            if self.runtime != "static"
            else compile_anew(self.name)
        )

    @property
    def tolerance(self) -> dict[str, float]:
        return {"rtol": 0.0, "atol": 1e-4 if self.runtime == "static" else 1e-9}


@dataclass(frozen=True)
class ExitKind(Kind):
    """One side of a network that is cut in two: the layers below the exit, or both pieces."""

    side: str

    def __str__(self) -> str:
        return f"{super().__str__()}-{self.side}"

    @property
    def network(self) -> PreTrainedModel:
        return self.model.network

    @property
    def model(self) -> EagerModel:
        return getattr(exit_pair(self.name, self.runtime), self.side)

    def load(self) -> EagerModel:
        return getattr(exit_pair.__wrapped__(self.name, self.runtime), self.side)


class SingleRow:
    """A scorer of one row beside the tokens it should have read; checks every answer it gives."""

    def __init__(self, kind: Kind, rng: Random) -> None:
        self.kind, self.network = kind, kind.network
        self.source = random_source(rng, self.network)
        self.scorer = kind.model.start([self.source])
        self.tokens: list[int] = []

    def extend(self, new: list[int], last: int = 1) -> None:
        logits = self.scorer.extend([new], last=last)
        self.tokens += new
        assert self.scorer.lengths == [len(self.tokens)]
        torch.testing.assert_close(
            logits[0], forward(self.network, self.source, self.tokens)[-last:], **self.kind.tolerance
        )

    def truncate(self, length: int) -> None:
        self.scorer.truncate([length])
        del self.tokens[length:]
        assert self.scorer.lengths == [len(self.tokens)]


class Ragged:
    """A batch beside single-row scorers that are fed the same; checks that they agree."""

    def __init__(self, kind: Kind, rng: Random, rows: int) -> None:
        self.kind, model = kind, kind.model
        self.sources = [random_source(rng, model.network) for _ in range(rows)]
        self.scorer = model.start(self.sources) if rows else None
        self.singles = [model.start([source]) for source in self.sources]
        self.texts: list[list[int]] = [[] for _ in self.sources]

    @property
    def lengths(self) -> list[int]:
        return [single.lengths[0] for single in self.singles]

    def extend(self, tokens: list[list[int]], last: int = 1) -> None:
        logits = self.scorer.extend(tokens, last=last)
        assert logits.shape == (len(tokens), last, VOCAB_SIZE)
        for row, new, single in zip(logits, tokens, self.singles, strict=True):
            if new:
                common = min(last, len(new))
                torch.testing.assert_close(row[-common:], single.extend([new], last=common)[0], **self.kind.tolerance)
        for text, new in zip(self.texts, tokens, strict=True):
            text += new
        assert self.scorer.lengths == self.lengths

    def truncate(self, lengths: list[int]) -> None:
        self.scorer.truncate(lengths)
        for text, length in zip(self.texts, lengths, strict=True):
            del text[length:]
        for length, single in zip(lengths, self.singles, strict=True):
            single.truncate([length])
        assert self.scorer.lengths == self.lengths

    def keep(self, rows: list[int]) -> None:
        self.scorer.keep(rows)
        self.singles = [self._fork(b) if b in rows[:at] else self.singles[b] for at, b in enumerate(rows)]
        self.texts = [list(self.texts[b]) for b in rows]
        self.sources = [self.sources[b] for b in rows]
        assert self.scorer.lengths == self.lengths

    def join(self, other: Ragged) -> None:
        self.scorer.join(other.scorer)
        self.singles += other.singles
        self.texts += other.texts
        self.sources += other.sources
        assert self.scorer.lengths == self.lengths

    def copy(self, rows: list[int]) -> Ragged | None:
        """These rows as a batch of their own, too; None where the scorer says that it cannot."""
        scorer = self.scorer.copy(rows)
        if scorer is None:
            return None
        other = Ragged(self.kind, Random(0), rows=0)
        other.scorer, other.sources = scorer, [self.sources[b] for b in rows]
        other.singles, other.texts = [self._fork(b) for b in rows], [list(self.texts[b]) for b in rows]
        assert scorer.lengths == other.lengths
        return other

    def _fork(self, row: int):
        """Another single row that has read the same."""
        single = self.kind.model.start([self.sources[row]])
        if self.texts[row]:
            single.extend([self.texts[row]])
        return single
