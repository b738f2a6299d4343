"""Rows that share a batch, and what becomes of them when a pass fails."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch

from bild.decoding import Batch, Commit, Loop, Pace, Row
from bild.decoding.at_once import MANY
from bild.engine.opening import Open
from bild.engine.prefix_cache import PrefixCache, begin_alike
from bild.engine.tickets import Ticket
from bild.errors import BildError, one_line

READ_TOKENS = 64
"""Prompt tokens a turn reads of a row that begins: others go on in between."""
PATIENCE = 3
"""Turns that may fail in a row."""

Tell = Callable[[Ticket, Commit, int, int | None], None]
Fail = Callable[[Ticket, str], None]


class BrokenError(BildError):
    """The models fail whatever they are given."""


class Lane:
    """One batch, those whose prompts are still being read, and those a failed pass has made suspects.

    After a failed pass both scorers are thrown away. Rows keep their source and what their owners were told, and
    reading that again is the recovery. Who was in the pass is tried alone for a round; who fails again is the culprit.

    Args:
        open: makes batches.
        alone: whether the small model decodes alone here.
        tell: is called with every commit, the number of rows it was made among, and the longest draft they might write.
        fail: is called for a ticket whose row cannot be decoded, with the reason.
        pace: how long drafts may be.
        clock: seconds.
        prefixes: what was read of other texts; None: every prompt is read whole.
    """

    def __init__(
        self,
        open: Open,
        alone: bool,
        tell: Tell,
        fail: Fail,
        pace: Pace,
        clock: Callable[[], float],
        prefixes: PrefixCache | None = None,
    ) -> None:
        self._open, self.alone, self._tell, self._fail = open, alone, tell, fail
        self._pace, self._clock, self._prefixes = pace, clock, prefixes
        self.tickets: dict[int, Ticket] = {}
        """All that have a row here, by id."""
        self.failures = 0
        """Turns in a row that failed without a culprit."""
        self._batch: Loop | None = None
        self._reading: list[Loop] = []
        self._behind: list[Ticket] = []
        """Those whose prompts begin as one does that is being read."""
        self._suspects: list[Ticket] = []
        self._parked: list[Ticket] = []
        self._proof: Ticket | None = None

    def turn(self, new: Sequence[Ticket], gone: Collection[int], rows: int) -> bool:
        """A round of all rows that can draft, or several where nobody waits for each, and a piece of the prompts that
        are being read.

        Args:
            new: tickets that begin.
            gone: ids of tickets that were cancelled.
            rows: how many may be decoded together.

        Returns:
            Whether there was too little memory for so many rows.

        Raises:
            BrokenError: too many turns in a row have failed.
        """
        for ticket in new:
            self.tickets[ticket.id] = ticket
        try:
            self._drop(gone)
            if self._suspects:
                self._try_alone(rows)
            self._admit(new, rows)
            self._read()
            if self._batch is not None and self._batch.rows:
                self._round(self._batch)
                self.failures = 0
        except BrokenError:
            raise
        except Exception as error:
            return self._suspect_all(error, rows)
        self._forget_ended()
        return False

    def _drop(self, gone: Collection[int]) -> None:
        if not gone & self.tickets.keys():
            return
        for id in gone:
            self.tickets.pop(id, None)
        self._suspects = [ticket for ticket in self._suspects if ticket.id not in gone]
        self._parked = [ticket for ticket in self._parked if ticket.id not in gone]
        self._behind = [ticket for ticket in self._behind if ticket.id not in gone]
        for batch in self._batches():
            stay = [b for b, row in enumerate(batch.rows) if row.index not in gone]
            if len(stay) < len(batch.rows):
                batch.keep(stay)
        self._forget_ended()

    def _admit(self, new: Sequence[Ticket], rows: int) -> None:
        parked = self._parked
        room = max(0, rows - (len(self.tickets) - len(parked)))
        again, self._parked = parked[:room], parked[room:]
        for tickets in (again, [ticket for ticket in new if not ticket.ended]):
            if tickets:
                self._begin(tickets)

    def _begin(self, tickets: Sequence[Ticket]) -> None:
        fresh: list[Ticket] = []
        for ticket in tickets:
            if (batch := self._continued(ticket)) is not None:
                self._add(batch, len(ticket.row.tokens) - ticket.known)
            elif self._is_being_read(ticket, fresh):
                self._behind.append(ticket)
            else:
                fresh.append(ticket)
        if fresh:
            self._add(self._opened(fresh), max(len(ticket.row.tokens) for ticket in fresh))

    def _add(self, batch: Loop, longest: int) -> None:
        """Let a batch that begins go on, its prompts first if they are long."""
        if longest > READ_TOKENS:
            self._reading.append(batch)
        else:
            self._join(batch)

    def _continued(self, ticket: Ticket) -> Loop | None:
        """A batch that goes on from another text."""
        opened = None
        if self._prefixes is not None:
            opened = self._prefixes.open(self._open, ticket.job, ticket.row, self.alone)
        if opened is None:
            return None
        batch, ticket.known = opened
        return self._told_of_parting(batch)

    def _is_being_read(self, ticket: Ticket, fresh: Sequence[Ticket]) -> bool:
        """Whether a prompt that begins alike is being read, or about to be."""
        if self._prefixes is None or len(ticket.row.tokens) <= READ_TOKENS:
            return False
        rows = [*(row for batch in self._reading for row in batch.rows), *(other.row for other in fresh)]
        return any(len(row.tokens) > READ_TOKENS and begin_alike(row.request, ticket.row.request) for row in rows)

    def _opened(self, tickets: Sequence[Ticket]) -> Loop:
        rows = [ticket.row for ticket in tickets]
        return self._told_of_parting(self._open([ticket.job for ticket in tickets], rows, self.alone))

    def _told_of_parting(self, batch: Loop) -> Loop:
        if self._prefixes is not None and isinstance(batch, Batch):
            batch.parting = self._remember
        return batch

    def _remember(self, batch: Batch, places: Iterable[int]) -> None:
        """Keep what was read of rows, for others that begin alike."""
        assert self._prefixes is not None
        try:
            self._prefixes.remember(batch, places, self.alone)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.forget()

    def _join(self, batch: Loop) -> None:
        if self._batch is None or not self._batch.rows:
            self._batch = batch
        else:
            self._batch.join(batch)

    def _read(self) -> None:
        """Read on in the prompts that came first."""
        if self._reading:
            if not self._reading[0].read(READ_TOKENS):
                return
            batch = self._reading.pop(0)
            if self._prefixes is not None and isinstance(batch, Batch):
                self._remember(batch, range(len(batch.rows)))
            self._join(batch)
        # Also where whoever they waited for is gone.
        behind, self._behind = self._behind, []
        self._begin(behind)

    def _round(self, batch: Loop) -> None:
        together, start = len(batch.rows), self._clock()
        window = None if batch.drafter is None else self._pace.window(together)
        # Whoever begins has its source or its prompt to read, which drafts have no part in.
        begins = any(self.tickets[row.index].told == 0 for row in batch.rows)
        # Whoever waits for a round is told when it is over, and a pace that learns learns from single ones.
        single = self._pace.learns or any(self.tickets[row.index].live for row in batch.rows)
        commits = []
        for commit in batch.round(window, 1 if single else MANY):
            ticket = self.tickets[commit.row]
            ticket.told += len(commit.tokens)
            commits.append(commit)
            self._tell(ticket, commit, together, window)
            if commit.finish_reason is not None:
                self._proof = self.tickets.pop(commit.row)
        if batch.drafter is not None and not begins:
            self._pace.learn(together, window, commits, self._clock() - start)

    def _try_alone(self, rows: int) -> None:
        """A round of each suspect by itself; those who come through go on together."""
        suspects, self._suspects = self._suspects, []
        survivors: list[Loop] = []
        culprits = 0
        for ticket in suspects:
            try:
                batch = self._opened([ticket])
                self._round(batch)
            except Exception as error:
                culprits += 1
                del self.tickets[ticket.id]
                self._fail(ticket, one_line(error) if isinstance(error, BildError) else type(error).__name__)
                continue
            if batch.rows and len(survivors) < rows:
                survivors.append(batch)
            elif batch.rows:
                self._parked.append(ticket)
        if culprits and (culprits < len(suspects) or self._works()):
            # The failure is explained, and it was not the models' own.
            self.failures = 0
        for batch in survivors:
            self._join(batch)

    def _works(self) -> bool:
        """Whether the models can still do what they could: a text that was once decoded is begun again."""
        if self._proof is None:
            return False
        ticket = self._proof
        try:
            row = Row(-1, ticket.job.request, ticket.row.rules)
            for _ in self._open([ticket.job], [row], self.alone).round():
                pass
        except Exception:
            return False
        return True

    def _suspect_all(self, error: Exception, rows: int) -> bool:
        self._batch, self._reading, self._behind, self._parked = None, [], [], []
        short = is_out_of_memory(error) and rows > 1
        if self._prefixes is not None:
            # It may be what the memory is short of, and nobody should go on from it who is a suspect.
            self._prefixes.forget()
        self.failures += not short
        if self.failures >= PATIENCE:
            raise BrokenError(f"{self.failures} turns in a row have failed") from error
        self._suspects = [ticket for ticket in self.tickets.values() if not ticket.ended]
        for ticket in self._suspects:
            ticket.rewind()
        return short

    def _batches(self) -> Iterable[Loop]:
        return [*([] if self._batch is None else [self._batch]), *self._reading]

    def _forget_ended(self) -> None:
        """Let go of storage that nobody uses."""
        if self._batch is not None and not self._batch.rows:
            self._batch = None
        self._reading = [batch for batch in self._reading if batch.rows]


def is_out_of_memory(error: Exception) -> bool:
    """Whether a pass failed for want of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error).lower()
    )
