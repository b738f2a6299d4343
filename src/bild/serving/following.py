"""The bridge between the engine's thread and the event loop, and what ends a request early."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from bild.decoding import Rules
from bild.engine import Engine, Event, Job, Place, Written

T = TypeVar("T")


class GoneError(Exception):
    """The client has left; there is nobody to answer."""


async def follow(
    engine: Engine, place: Place, jobs: Sequence[Job], rules: Rules, at_once: int, *, live: bool = True
) -> AsyncGenerator[tuple[int, Event]]:
    """What becomes of jobs, as it happens; whoever stops listening cancels those that are left.

    Args:
        engine: decodes them.
        place: of the request.
        jobs: in order; a long request hands in the next one when one ends, so that it does not lock others out.
        rules: of all jobs.
        at_once: jobs that are handed in at once, 1….
        live: whether each round is told when it is over; else all of a text's together: waking this loop after every
            round takes a third of a millisecond from the engine.

    Yields:
        A job's place in ``jobs``, and what the engine says of it.
    """
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[list[Event]] = asyncio.Queue()

    kept: list[Event] = []

    def hear(events: list[Event]) -> None:
        nonlocal kept
        kept += events
        if live or not all(isinstance(event, Written) for event in events):
            ready, kept = kept, []
            loop.call_soon_threadsafe(heard.put_nowait, ready)

    left, going = deque(enumerate(jobs)), dict[int, int]()
    try:
        while left or going:
            new = [left.popleft() for _ in range(min(len(left), at_once - len(going)))]
            if new:
                tickets = engine.submit([job for _, job in new], rules, hear, place, live=live)
                going |= {ticket: index for ticket, (index, _) in zip(tickets, new, strict=True)}
            for event in await heard.get():
                index = going[event.ticket] if isinstance(event, Written) else going.pop(event.ticket)
                yield index, event
    finally:
        engine.cancel(going)


async def while_connected(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T:
    """Do some work as long as the client is there.

    Raises:
        GoneError: it has left; the work is cancelled.
    """
    own, goes_on, is_gone = asyncio.current_task(), True, False
    assert own is not None, "a request is answered in a task"

    def leave(watching: asyncio.Task[None]) -> None:
        nonlocal is_gone
        if goes_on and not watching.cancelled():
            is_gone = True
            own.cancel()

    watching = asyncio.ensure_future(left(receive))
    watching.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Whoever stops the server cancels, too.
        if is_gone and own.uncancel() == 0:
            raise GoneError from None
        raise
    finally:
        goes_on = False
        watching.cancel()


async def left(receive: Callable[[], Awaitable[Any]]) -> None:
    """Return when the client has left. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def closed(generator: AsyncGenerator[Any]) -> None:
    """Close a generator, whatever it is at."""
    with suppress(RuntimeError):
        await generator.aclose()
