"""The bridge to the event loop: nothing waits for another text's end, and whoever stops listening is cancelled."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from bild.decoding import Policy, Rules
from bild.engine import Failed, Finished, Written
from bild.serving.following import GoneError, follow, while_connected
from tests.engine.toys import engine, job


def test_an_end_is_told_at_once_though_others_go_on():
    caller = engine(rows=4)
    place = caller.engine.reserve()

    async def run():
        jobs = [job(1, longest=2), job(2, longest=9)]
        following = follow(caller.engine, place, jobs, Rules(Policy.large()), 4, live=False)
        async with aclosing(following):
            first = asyncio.ensure_future(anext(following))
            await asyncio.sleep(0)
            caller.engine.step()
            await asyncio.sleep(0.01)
            # A round of both, and no end: nobody is woken.
            assert not first.done()
            caller.engine.step()
            assert (await asyncio.wait_for(first, 5))[0] == 0
            seen = [(await anext(following)) for _ in range(3)]
            assert {index for index, event in seen if isinstance(event, Finished)} == {0}
            assert caller.engine.load.rows == 1
        caller.engine.step()

    asyncio.run(run())
    assert caller.engine.load.rows == 0


def test_a_long_request_does_not_lock_others_out():
    caller = engine(rows=2)
    place = caller.engine.reserve()
    other: list[int] = []

    async def run():
        jobs = [job(seed, longest=2) for seed in range(10)]
        ended = []
        async with aclosing(follow(caller.engine, place, jobs, Rules(Policy.large()), 2)) as following:
            pending = asyncio.ensure_future(anext(following, None))
            for turn in range(60):
                await asyncio.sleep(0)
                if turn == 1:
                    other.extend(caller.ask(job(99, longest=1), rules=Rules(Policy.large())))
                caller.engine.step()
                while pending.done() or await _soon(pending):
                    found = pending.result()
                    if found is None:
                        return ended
                    if isinstance(found[1], Finished | Failed):
                        ended.append((found[0], caller.last(other[0]) is not None if other else False))
                    pending = asyncio.ensure_future(anext(following, None))
        return ended

    ended = asyncio.run(run())
    assert sorted(index for index, _ in ended) == list(range(10))
    # The other text was done when most of the long request was still to come.
    assert [done for _, done in ended][4:] == [True] * 6


async def _soon(future: asyncio.Future) -> bool:
    await asyncio.wait({future}, timeout=0.01)
    return future.done()


def test_commits_are_told_one_by_one_where_they_are_wanted():
    caller = engine(rows=1)
    place = caller.engine.reserve()

    async def run():
        following = follow(caller.engine, place, [job(1, longest=9)], Rules(Policy.large()), 1)
        async with aclosing(following):
            for at in range(3):
                following_one = asyncio.ensure_future(anext(following))
                await asyncio.sleep(0)
                caller.engine.step()
                index, event = await asyncio.wait_for(following_one, 5)
                assert index == 0 and isinstance(event, Written) and len(event.commit.tokens) == 1, at

    asyncio.run(run())


class Client:
    """Sends its body, and leaves when it is told to."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}


def test_whoever_leaves_has_nothing_done_for_him():
    async def run():
        client, cancelled = Client(), []

        async def work():
            try:
                client.leaves.set()
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                cancelled.append(True)
                # What is cleared away takes its time, and is waited for.
                await asyncio.sleep(0)
                cancelled.append("cleared")
                raise

        with pytest.raises(GoneError):
            await while_connected(client.receive, work())
        assert cancelled == [True, "cleared"]
        # Nothing of it is left: the task may wait for something else.
        await asyncio.sleep(0.01)
        assert not asyncio.current_task().cancelling()

    asyncio.run(run())


def test_whoever_leaves_when_all_is_done_is_no_error():
    async def run():
        client = Client()

        async def work():
            client.leaves.set()
            return 7

        assert await while_connected(client.receive, work()) == 7
        await asyncio.sleep(0.01)

    asyncio.run(run())


def test_a_server_that_stops_is_no_client_that_left():
    async def run():
        client = Client()
        task = asyncio.ensure_future(while_connected(client.receive, asyncio.sleep(5)))
        await asyncio.sleep(0)
        task.cancel()
        client.leaves.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_what_fails_fails_as_it_is():
    async def run():
        async def work():
            raise KeyError("own")

        with pytest.raises(KeyError, match="own"):
            await while_connected(Client().receive, work())

    asyncio.run(run())
