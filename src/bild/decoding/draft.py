"""What a drafter proposes for one row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

HandOverReason = Literal["unsure", "window", "nothing", "segment", "end", "stop", "length"]
"""Why a drafter gave up the turn: it doubted its next token, its room was used, it had nothing to propose, a segment
that a reward judges is complete, or the text ends with its last token: by an end token, by a stop string, or because it
is as long as it may be."""
ENDS: dict[str, HandOverReason] = {"eos": "end", "stop": "stop", "length": "length"}
"""The reason for each way in which a text ends."""
Writer = str
"""Who wrote a token: ``"small"``, ``"large"``, or the name of another drafter."""


class Work(NamedTuple):
    """What a model did in one round of a row."""

    steps: int = 0
    """Forward passes that served the row."""
    read: int = 0
    """Tokens of the row that it read."""


NO_WORK = Work()


@dataclass(slots=True)
class Draft:
    """Tokens nobody has judged yet, and how they came about."""

    tokens: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    """Confidence in each kept token, then in the dropped one if there is one; empty where not measured."""
    logits: list[Tensor] = field(default_factory=list)
    """What each kept token was picked from ``[V]``; empty where the acceptance rule does not ask."""
    certain: bool = False
    """Whether the drafter has no distribution: every rule that needs one then takes probability 1 on its token."""
    reason: HandOverReason | None = None
    """Why the turn was handed over; None when nobody was asked."""
    doubtful: int | None = None
    """The token that made the drafter hand over, if it was dropped."""
    writer: Writer = "small"
    """The drafter's name."""
    writers: list[Writer] = field(default_factory=list)
    """Who wrote each token, where it was not all the drafter."""
    work: dict[Writer, Work] = field(default_factory=dict)
    """Of the models that drafted, by name."""

    def signed(self, count: int) -> list[Writer]:
        """Who wrote each of the first ``count`` tokens."""
        return self.writers[:count] if self.writers else [self.writer] * count

    @property
    def ends(self) -> bool:
        """Whether the text ends with this draft, if all of it is kept."""
        return self.reason in ("end", "stop", "length")

    @property
    def closes(self) -> bool:
        """Whether the text, or a segment of it, ends with this draft, if all of it is kept."""
        return self.ends or self.reason == "segment"
