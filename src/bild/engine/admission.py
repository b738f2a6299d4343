"""Who comes next: first in, first out, with memory reserved for the longest text. No clock, no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bild.decoding import Rules
from bild.engine.opening import Job
from bild.engine.tickets import Ticket
from bild.errors import TooLongError, check_count


@dataclass(frozen=True)
class Limits:
    """What an engine takes on at once.

    Args:
        rows: texts decoded together, 1…; how many pay is the pair's and the machine's (docs/serving.md).
        cells: tokens there is room for, 1…: rows × (longest source + longest text with its prompt); a text that is
            searched has a row a hypothesis. Storage is
            doubled and halved by steps, so for moments it may be up to four times that.
        queue: requests that may wait for their first row, 1….
        queue_tokens: tokens of sources and prompts that may wait for a row, 1…; one request alone may have more.
        source_tokens: tokens of new sources read in one turn, 1…: an encoder's pass cannot be cut, and all wait for it.
        prefix_tokens: tokens of texts that ended, 0…, kept beside all that: a prompt that begins as one of them is
            read from where they part. Decoder-only.

    Raises:
        InputError: a limit below 1.
    """

    rows: int = 4
    cells: int = 65536
    queue: int = 128
    queue_tokens: int = 1 << 18
    source_tokens: int = 2048
    prefix_tokens: int = 16384

    def __post_init__(self) -> None:
        for name in ("rows", "cells", "queue", "queue_tokens", "source_tokens"):
            check_count(name, getattr(self, name))
        check_count("prefix_tokens", self.prefix_tokens, least=0)


@dataclass
class Admission:
    """Decides who gets a row.

    Args:
        limits: of the engine.
        rows: texts decoded together at the moment, at most ``limits.rows``.
    """

    limits: Limits
    rows: int

    def check(self, job: Job, rules: Rules) -> None:
        """Whether a text can be decoded at all.

        Raises:
            TooLongError: it is longer than all the room there is.
        """
        rows = rules.most_rows
        needed = rows * (len(job.source) + len(job.request.prompt) + job.request.max_new_tokens)
        if needed > self.limits.cells:
            of, less = (f" in each of {rows} hypotheses", ", or num_beams") if rows > 1 else ("", "")
            raise TooLongError(
                f"the text needs room for {needed} tokens (source, prompt and the longest continuation{of}), and there "
                f"is room for {self.limits.cells}; shorten it, or lower max_tokens{less}"
            )

    def take(self, waiting: deque[Ticket], active: Collection[Ticket], most: int | None = None) -> list[Ticket]:
        """Take those who may begin from the front of the queue; nobody overtakes.

        Args:
            waiting: in order; those that begin are taken out.
            active: have a row.
            most: take no more than so many; None: any number.
        """
        taken: list[Ticket] = []
        going = list(active)
        tokens = 0
        while waiting and len(going) < self.rows and (most is None or len(taken) < most):
            ticket = waiting[0]
            tokens += ticket.source
            if (taken and tokens > self.limits.source_tokens) or cells([*going, ticket]) > self.limits.cells:
                break
            taken.append(waiting.popleft())
            going.append(ticket)
        return taken


def cells(tickets: Iterable[Ticket]) -> int:
    """Tokens there must be room for, so that all of these can be decoded together to their longest."""
    each = list(tickets)
    if not each:
        return 0
    rows = sum(ticket.rules.most_rows for ticket in each)
    return rows * (max(ticket.source for ticket in each) + max(ticket.longest for ticket in each))
