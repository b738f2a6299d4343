"""Statistics of a run: a fold over its commits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from bild.decoding.commits import Commit
from bild.decoding.draft import HandOverReason, Writer

REASONS = get_args(HandOverReason)
RATES = ("acceptance_rate", "mean_acceptance_length", "rollback_rate", "large_share")


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


@dataclass(slots=True)
class Stats:
    """Counts of one text or, added up, of many. A rate is None where its denominator is 0."""

    num_tokens: int = 0
    """Tokens of the text, its end token included."""
    num_rounds: int = 0
    """Drafts handed over or ended. A draft may be empty; one that ends the text may go unread."""
    num_draft_tokens: int = 0
    """Tokens the drafter proposed (a token dropped for doubt is not one)."""
    num_accepted_tokens: int = 0
    """Proposed tokens that stayed, unverified ones included."""
    num_unverified_tokens: int = 0
    """Proposed tokens that ended the text without being read by the large model."""
    num_rollbacks: int = 0
    """Rounds in which the large model rejected part of the draft."""
    num_small_steps: int = 0
    """Forward passes of the small model."""
    num_large_steps: int = 0
    """Forward passes of the large model."""
    num_large_tokens: int = 0
    """Tokens of the text that the large model wrote."""
    num_tokens_by_writer: dict[Writer, int] = field(default_factory=dict)
    """Tokens of the text by who wrote them: ``"large"``, ``"small"``, ``"ngram"``, …"""
    num_steps_by_model: dict[Writer, int] = field(default_factory=dict)
    """Forward passes by model: ``"large"``, ``"small"``, ``"middle"``, …"""
    hand_overs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    """Rounds by the reason the drafter gave up the turn, see :data:`~bild.decoding.draft.HandOverReason`."""

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens / drafted tokens."""
        return _ratio(self.num_accepted_tokens, self.num_draft_tokens)

    @property
    def mean_acceptance_length(self) -> float | None:
        """``1 + accepted tokens / rounds``: tokens a large pass yields."""
        per_round = _ratio(self.num_accepted_tokens, self.num_rounds)
        return None if per_round is None else 1 + per_round

    @property
    def rollback_rate(self) -> float | None:
        """Rollbacks / rounds."""
        return _ratio(self.num_rollbacks, self.num_rounds)

    @property
    def large_share(self) -> float | None:
        """Tokens written by the large model / all tokens."""
        return _ratio(self.num_large_tokens, self.num_tokens)

    def add(self, commit: Commit) -> None:
        """Count one commit."""
        self.num_tokens += len(commit.tokens)
        self.num_draft_tokens += len(commit.draft)
        self.num_accepted_tokens += commit.accepted
        self.num_unverified_tokens += 0 if commit.verified else commit.accepted
        self.num_rollbacks += commit.rolled_back
        self.num_small_steps += commit.steps("small")
        self.num_large_steps += commit.steps("large")
        self.num_large_tokens += commit.writers.count("large")
        for writer in commit.writers:
            self.num_tokens_by_writer[writer] = self.num_tokens_by_writer.get(writer, 0) + 1
        for model, work in commit.work.items():
            self.num_steps_by_model[model] = self.num_steps_by_model.get(model, 0) + work.steps
        if commit.reason is not None:
            self.num_rounds += 1
            self.hand_overs[commit.reason] += 1

    @classmethod
    def of(cls, commits: Iterable[Commit]) -> Stats:
        """The statistics of these commits."""
        stats = cls()
        for commit in commits:
            stats.add(commit)
        return stats

    @classmethod
    def total(cls, many: Iterable[Stats]) -> Stats:
        """Counts of several texts added up; the rates follow from the sums."""
        total = cls()
        for stats in many:
            for name, value in stats._counts():
                if isinstance(value, dict):
                    counts = getattr(total, name)
                    for key, count in value.items():
                        counts[key] = counts.get(key, 0) + count
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates as plain JSON values."""
        counts = {name: dict(value) if isinstance(value, dict) else value for name, value in self._counts()}
        return counts | {name: getattr(self, name) for name in RATES}

    def _counts(self) -> Iterator[tuple[str, Any]]:
        return ((each.name, getattr(self, each.name)) for each in fields(self))
