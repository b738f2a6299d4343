"""Lanes: several batches decoded side by side, each by a thread of its own.

Rows of a batch share what is read of the weights, and a small model is soon bound by arithmetic and by what happens
between its passes. Where there are more cores than a product has use for, a lane a core is then the faster way; one
packed copy of the weights serves all (:mod:`bild.models.compiled.runner`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from queue import Queue, SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

import torch

from bild.decoding import Commit
from bild.decoding.threads import with_threads_of_here
from bild.engine import Job

AHEAD = 4
"""Rounds a lane may be ahead of who asks for its commits."""

Taken = tuple[int, list[Job]]
Take = Callable[[int], Taken]
"""The next jobs, at most so many, behind the number of those that were taken before."""
Lane = Callable[[Take], Iterator[list[Commit]]]
"""Decodes what it takes, a list of commits a round."""


class _Wish(NamedTuple):
    """A lane has room for so many jobs."""

    room: int
    reply: SimpleQueue[Taken]


class _End(NamedTuple):
    """A lane has ended, by an error or because nothing is left."""

    error: BaseException | None


def side_by_side(lane: Lane, take: Take, count: int) -> Generator[list[Commit]]:
    """The rounds of several lanes, as they come.

    Args:
        lane: started once for each.
        take: called in the caller's own thread, whenever a lane has room.
        count: of lanes, 1…

    Raises:
        Exception: what a lane raises; the others end with their round.
    """
    box: Queue[list[Commit] | _Wish | _End] = Queue(AHEAD * count)
    stop, running = Event(), count

    def run() -> None:
        replies: SimpleQueue[Taken] = SimpleQueue()

        def ask(room: int) -> Taken:
            box.put(_Wish(room, replies))
            return replies.get()

        error: BaseException | None = None
        try:
            with torch.inference_mode():
                for commits in lane(ask):
                    box.put(commits)
                    if stop.is_set():
                        break
        except BaseException as raised:  # whatever it is, the caller waits for a word
            error = raised
        box.put(_End(error))

    lanes = [
        Thread(target=with_threads_of_here(run), name=f"bild-lane-{number}", daemon=True) for number in range(count)
    ]
    for each in lanes:
        each.start()
    try:
        while running:
            found = box.get()
            if isinstance(found, _Wish):
                taken: Taken = 0, []
                try:
                    taken = take(found.room)
                finally:
                    # Also where it raises: the lane waits.
                    found.reply.put(taken)
            elif isinstance(found, _End):
                running -= 1
                if found.error is not None:
                    raise found.error
            else:
                yield found
    finally:
        stop.set()
        while running:
            found = box.get()
            if isinstance(found, _Wish):
                found.reply.put((0, []))
            running -= isinstance(found, _End)
        for each in lanes:
            each.join()
