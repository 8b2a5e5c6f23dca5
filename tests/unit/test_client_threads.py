"""The blocking client from several threads, and interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from inspect import getmembers, isfunction, signature
from typing import Any, cast

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from logd_client import sync
from logd_client.admin import Admin
from logd_client.coordination.assignments import OwnedShard
from logd_client.sync import _Portal
from logd_client.sync_coordination import Assignments, Lock

SHARDS = 64
GUARD_S = 30.0


@pytest.fixture(params=["asyncio", "trio"])
def portal(request: pytest.FixtureRequest) -> Iterator[_Portal]:
    with start_blocking_portal(request.param) as opened:
        yield _Portal(opened)


def test_each_shard_has_a_thread_however_many_there_are(portal: _Portal) -> None:
    class Owner:
        """The member that owns all shards."""

        async def work(
            self, member: str, run_shard: Callable[[str], Coroutine[Any, Any, None]], *, data: bytes
        ) -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(SHARDS):
                    tasks.start_soon(run_shard, f"shard-{number}")

    all_run = threading.Barrier(SHARDS)

    def run_shard(shard: OwnedShard) -> None:
        all_run.wait(GUARD_S)

    Assignments(portal, cast("Any", Owner())).work("one", run_shard)


def test_iterating_ends_when_the_client_is_closed_wherever_the_thread_just_is(
    portal: _Portal,
) -> None:
    """A thread that waits for a record ends; one that has yet to ask for the next does too."""

    class Source:
        def take_buffered(self) -> None:
            """Nothing is."""

        async def next_record(self) -> str:
            return "record"

        async def next_batch(self) -> str:
            return "batch"

    consumer = sync.Consumer(portal, cast("Any", Source()))
    records, batches = iter(consumer), consumer.batches()
    begun = [next(records), next(batches)]
    portal.is_closed = True

    assert [*begun, *records, *batches] == ["record", "batch"]


def test_a_blocking_administrator_takes_what_the_asynchronous_one_takes() -> None:
    for name, asked in getmembers(Admin, isfunction):
        if not name.startswith("_"):
            blocking = getattr(sync.Admin, name)
            assert list(signature(blocking).parameters) == list(signature(asked).parameters), name


def test_a_blocking_consumer_tells_what_the_asynchronous_one_tells() -> None:
    assert {"lag", "malformed_count", "position", "trouble"} <= set(dir(sync.Consumer))


class Interrupted(BaseException):
    """As KeyboardInterrupt: not meant to be caught."""


def test_a_call_that_is_interrupted_goes_on_behind_nobody_s_back(portal: _Portal) -> None:
    is_cancelled = threading.Event()

    async def wait_in_line() -> None:
        try:
            await anyio.sleep(2 * GUARD_S)
        except anyio.get_cancelled_exc_class():
            is_cancelled.set()
            raise

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Interrupted):
            portal.call(wait_in_line)
    finally:
        signal.signal(signal.SIGALRM, before)

    assert is_cancelled.wait(GUARD_S)


def test_each_thread_gives_back_what_it_took_itself(portal: _Portal) -> None:
    class Taken:
        is_lost = False

        def __init__(self, number: int) -> None:
            self.token = number
            self.is_released = False

        async def release(self) -> None:
            self.is_released = True

    class Semaphore:
        def __init__(self) -> None:
            self.taken: list[Taken] = []

        async def acquire(self, timeout_s: float | None) -> Taken:
            self.taken.append(Taken(len(self.taken)))
            return self.taken[-1]

    asynchronous = Semaphore()
    semaphore = Lock(portal, cast("Any", asynchronous))
    second_holds, first_is_gone = threading.Event(), threading.Event()
    held: list[bool] = []

    def second() -> None:
        with semaphore as lease:
            second_holds.set()
            first_is_gone.wait(GUARD_S)
            held.append(not asynchronous.taken[lease.token].is_released)

    thread = threading.Thread(target=second)
    with semaphore:
        thread.start()
        second_holds.wait(GUARD_S)
    first_is_gone.set()
    thread.join()

    assert held == [True]
    assert all(taken.is_released for taken in asynchronous.taken)
