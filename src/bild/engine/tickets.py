"""What was asked of an engine, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from bild.decoding import Commit, Row, Rules
from bild.engine.opening import Job, within

Failure = Literal["row", "engine", "cancelled", "stopped"]
"""Why a ticket has no text: its own row failed; the engine broke down; its owner left; the engine was stopped."""


@dataclass(frozen=True, slots=True)
class Written:
    """A round of a ticket's row."""

    ticket: int
    commit: Commit
    elapsed_s: float
    """Seconds since the ticket was handed in."""
    rows: int = 1
    """Rows that were decoded together."""
    window: int | None = None
    """The longest draft the pace allowed; None: as long as the row's policy says."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The text is complete; the last event of its ticket."""

    ticket: int
    queue_s: float
    """Seconds it waited for a row."""
    ttft_s: float
    """Seconds from its arrival to its first token."""
    total_s: float
    """Seconds from its arrival to its last token."""
    prompt: int = 0
    """Tokens of its prompt."""
    known: int = 0
    """Those among them that had been read of another text."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no more of this text; the last event of its ticket."""

    ticket: int
    failure: Failure
    message: str
    """For a log; never holds a text."""


Event = Written | Finished | Failed
Sink = Callable[[list[Event]], None]
"""Is handed a ticket's events, once a turn, on the engine's thread."""


@dataclass(eq=False)
class Place:
    """A request's place in the queue; held until all its tickets have ended."""

    waiting: bool = True
    """Whether none of its tickets has a row yet."""
    tokens: int = 0
    """Of its sources and prompts that have no row yet."""
    released: bool = False


@dataclass(eq=False)
class Ticket:
    """One text that was asked for.

    Args:
        id: names it; the index of its row.
        job: source and request.
        rules: how it is decoded.
        sink: is told what becomes of it.
        place: of the request it belongs to.
        submitted: when, by the engine's clock, in seconds.
        live: whether somebody waits for each round; else several may be told at once.
    """

    id: int
    job: Job
    rules: Rules
    sink: Sink
    place: Place
    submitted: float
    live: bool = True
    admitted: float | None = None
    first: float | None = None
    ended: bool = False
    told: int = 0
    """Tokens its owner has been told of."""
    known: int = 0
    """Tokens of its prompt that had been read of another text."""
    row: Row = field(init=False)

    def __post_init__(self) -> None:
        self.row = Row(self.id, self.job.request, within(self.rules) if self.alone else self.rules)

    @property
    def alone(self) -> bool:
        """Whether the small model decodes it alone; such rows have batches of their own."""
        return self.rules.policy.alone == "small"

    @property
    def searched(self) -> bool:
        """Whether it is found by a beam search; such rows have batches of their own, too."""
        return self.rules.beams is not None

    @property
    def source(self) -> int:
        """Tokens of its source."""
        return len(self.job.source)

    @property
    def unread(self) -> int:
        """Tokens of its source and its prompt."""
        return unread(self.job)

    @property
    def longest(self) -> int:
        """Tokens its text can have, prompt and all."""
        return len(self.job.request.prompt) + self.job.request.max_new_tokens

    def rewind(self) -> None:
        """Forget what its owner has not been told of: read again, the row goes on as if nothing had been."""
        self.row.committed = self.row.prompt_length + self.told
        del self.row.tokens[self.row.committed :]


def unread(job: Job) -> int:
    """Tokens that have to be read before a text can begin."""
    return len(job.source) + len(job.request.prompt)
