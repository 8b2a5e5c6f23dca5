"""The blocking client from several threads, and interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
import trio
from anyio.from_thread import start_blocking_portal

from logd.errors import LeaseLostError, UsageError
from logd_client import sync
from logd_client.consumer import Consumer
from logd_client.consumer_options import ConsumerOptions
from logd_client.coordination.assignments import OwnedShard
from logd_client.portal import LoopThread, Portal
from logd_client.records import Batch
from logd_client.sync_coordination import Assignments, Election, Lock, Membership, Watch

SHARDS = 64
GUARD_S = 30.0


@pytest.fixture(params=["asyncio", "trio"])
def portal(request: pytest.FixtureRequest) -> Iterator[Portal]:
    with start_blocking_portal(request.param) as opened:
        yield Portal(opened)


def test_each_shard_has_a_thread_however_many_there_are(portal: Portal) -> None:
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


FORKING = """
import os, signal, sys
from logd.errors import UsageError
from logd_client import sync

class Alone:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        print("closed", flush=True)

    def queue(self, name):
        return name

client = sync.Client(Alone(), sys.argv[1]).open()
forked = os.fork()
if not forked:
    signal.alarm(10)  # Ends it wherever it waits.
    try:
        client.queue("jobs")
    except UsageError as error:
        print(error, flush=True)
    if sys.argv[2] == "closes":
        client.close()
    sys.exit()
print(os.waitpid(forked, 0)[1], flush=True)
client.close()
"""


@pytest.mark.parametrize("ending", ["closes", "leaves it open"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_process_is_told_that_it_has_no_client_and_can_end(
    backend: str, ending: str
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, backend, ending]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)

    told, *rest = done.stdout.splitlines()
    assert told.startswith("the client was opened before this process was forked off")
    assert rest == ["0", "closed"]


class Columns:
    """What a batch is made of."""

    header = SimpleNamespace(append_time_ms=0, first_timestamp_ms=0)

    def __init__(self, offsets: range) -> None:
        self.offsets = offsets
        self.timestamp_deltas = self.keys = self.values = self.headers = list(offsets)

    def __len__(self) -> int:
        return len(self.offsets)


class Unread(Consumer):
    """All records have arrived."""

    def __init__(self, *, batch_count: int, records_each: int) -> None:
        super().__init__(cast("Any", None), "orders", ConsumerOptions())
        self._is_open = True
        ends = range(records_each, (batch_count + 1) * records_each, records_each)
        self._unread = [range(end - records_each, end) for end in ends]
        self.on_taken: Callable[[], None] = lambda: None

    async def _next_batch(self) -> Batch | None:
        await anyio.lowlevel.checkpoint()
        if not self._unread:
            return None
        batch = Batch("orders", 0, cast("Any", Columns(self._unread.pop(0))))
        self.on_taken()
        return batch


def unread_in(portal: Portal, *, batch_count: int, records_each: int) -> Unread:
    return portal.call(partial(Unread, batch_count=batch_count, records_each=records_each))


def test_iterating_ends_when_the_client_is_closed_wherever_the_thread_just_is(
    portal: Portal,
) -> None:
    """A thread that waits for a record ends; one that has yet to ask for the next does too."""

    consumer = sync.Consumer(portal, unread_in(portal, batch_count=2, records_each=1))
    records, batches = iter(consumer), consumer.batches()
    begun = [next(records).offset, next(batches).base_offset]
    portal.is_closed = True

    assert begun == [0, 1]
    assert [*records, *batches] == []


class Told:
    """A watch or a view, which tells the same again and again."""

    async def __aenter__(self) -> Told:
        return self

    async def __aexit__(self, *error: object) -> None:
        """It is left."""

    async def next(self) -> str:
        return "event"

    async def __anext__(self) -> str:
        return await self.next()


def test_watching_ends_when_the_client_is_closed_wherever_the_thread_just_is(
    portal: Portal,
) -> None:
    async def observe() -> Told:
        return Told()

    election = Election(portal, cast("Any", SimpleNamespace(observe=observe)))
    watch, leaders = Watch(portal, cast("Any", Told())), election.observe()
    events: Iterator[object] = iter(watch)
    begun = [next(events), next(leaders)]
    portal.is_closed = True

    assert begun == ["event", "event"]
    assert [*events, *leaders] == []
    assert watch.next() is None


def test_what_is_held_when_the_client_is_closed_within_the_block_is_lost(portal: Portal) -> None:
    """By then it is given back; and what the block itself raises goes on."""

    class Held:
        is_lost = False
        member = "one"

        async def acquire(self, timeout_s: float | None) -> Held:
            return self

        async def join(self) -> None:
            """It is a member."""

        async def give_back(self) -> None:
            raise AssertionError("the client has given it back")

        release = leave = give_back

        def lost_error(self) -> LeaseLostError:
            return LeaseLostError("closed")

    def within(block: AbstractContextManager[object], held: Held, error: Exception | None) -> None:
        portal.is_closed = False
        with block:
            portal.is_closed = held.is_lost = True
            if error is not None:
                raise error

    for kind in (Lock, Membership):
        held = Held()
        block = kind(portal, cast("Any", held))
        with pytest.raises(LeaseLostError):
            within(block, held, None)
        with pytest.raises(ValueError, match="of the block"):
            within(block, held, ValueError("of the block"))


class Interrupted(BaseException):
    """As KeyboardInterrupt: not meant to be caught."""


@contextmanager
def handling_alarms(handler: Callable[[int, object], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_that_the_end_of_the_client_cuts_off_says_so(backend: str) -> None:
    """Its block ends with an exception, and waits for no other thread."""
    has_begun = threading.Event()

    async def stand_still() -> None:
        has_begun.set()
        await anyio.sleep_forever()

    with ThreadPoolExecutor() as threads:
        with suppress(ValueError), start_blocking_portal(backend) as loop:
            portal = Portal(loop)
            called = threads.submit(portal.call, stand_still)
            assert has_begun.wait(GUARD_S)
            portal.is_closed = True
            raise ValueError("of the block")

        with pytest.raises(UsageError, match="the client is closed") as caught:
            called.result(GUARD_S)
    assert caught.value.may_have_applied


def test_a_call_that_comes_just_as_the_client_ends_is_told_that_it_is_closed() -> None:
    class Ended:
        """Since somebody has looked whether the client is closed."""

        def start_task_soon(self, *_: object) -> None:
            closing.is_closed = True
            raise RuntimeError("This portal is not running")

    closing = Portal(cast("Any", Ended()))
    with pytest.raises(UsageError, match="the client is closed") as caught:
        closing.call(anyio.lowlevel.checkpoint)
    assert not caught.value.may_have_applied


@contextmanager
def interrupted(times: int = 1) -> Iterator[Callable[[], None]]:
    """What to call in the event loop's thread once the test's thread waits for it, or is about to:
    soon afterwards that one is interrupted, and soon after that once more if it is to be."""
    waiting = threading.get_ident()
    left = times

    def interrupt_soon() -> None:
        threading.Timer(0.2, signal.pthread_kill, (waiting, signal.SIGALRM)).start()

    def handle(number: int, frame: object) -> None:
        nonlocal left
        left -= 1
        if left:
            interrupt_soon()
        raise Interrupted

    with handling_alarms(handle), pytest.raises(Interrupted):
        yield interrupt_soon


def test_a_call_that_is_interrupted_goes_on_behind_nobody_s_back(portal: Portal) -> None:
    is_cancelled = threading.Event()

    async def wait_in_line(begun: Callable[[], None]) -> None:
        begun()
        try:
            await anyio.sleep(2 * GUARD_S)
        except anyio.get_cancelled_exc_class():
            is_cancelled.set()
            raise

    with interrupted() as begun:
        portal.call(wait_in_line, begun)

    assert is_cancelled.wait(GUARD_S)


class Orderly:
    """What takes a moment to end when it is cancelled, and waits until it may."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.may_end.set()
        self.has_ended = False

    async def run(self, begun: Callable[[], None]) -> None:
        begun()
        try:
            await anyio.sleep(2 * GUARD_S)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.2)
                await anyio.to_thread.run_sync(self.may_end.wait, GUARD_S)
                self.has_ended = True


def test_a_call_that_ends_in_order_has_ended_when_its_thread_goes_on(portal: Portal) -> None:
    work = Orderly()

    with interrupted() as begun:
        portal.call_to_its_end(partial(work.run, begun))

    assert work.has_ended
    assert portal.entered == {}


def test_a_call_that_ends_in_order_has_ended_when_the_client_is_closed(portal: Portal) -> None:
    work = Orderly()
    has_begun = threading.Event()
    with ThreadPoolExecutor() as threads:
        called = threads.submit(portal.call_to_its_end, partial(work.run, has_begun.set))
        assert has_begun.wait(GUARD_S)

        portal.close()

        assert work.has_ended
        with pytest.raises(UsageError, match="the client is closed"):
            called.result(GUARD_S)


def test_who_is_interrupted_again_does_not_wait_for_the_end(portal: Portal) -> None:
    work = Orderly()
    work.may_end.clear()

    with interrupted(times=2) as begun:
        portal.call_to_its_end(partial(work.run, begun))

    assert not work.has_ended
    work.may_end.set()


def test_a_call_that_ends_in_order_fails_and_returns_as_any_other(portal: Portal) -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def count() -> int:
        return 3

    with pytest.raises(ValueError, match="no"):
        portal.call_to_its_end(fail)
    assert portal.call_to_its_end(count) == 3
    portal.is_closed = True
    with pytest.raises(UsageError, match="the client is closed"):
        portal.call_to_its_end(count)
    assert portal.entered == {}


@contextmanager
def interrupting() -> Iterator[Callable[[], None]]:
    """What to call in the event loop's thread to have the test's interrupted, once: what is
    returned there at once comes too late."""
    waiting = threading.get_ident()
    is_interrupted = threading.Event()

    def handle(number: int, frame: object) -> None:
        is_interrupted.set()
        raise Interrupted

    def interrupt() -> None:
        if not is_interrupted.is_set():
            signal.pthread_kill(waiting, signal.SIGALRM)
            is_interrupted.wait(GUARD_S)
            time.sleep(0.02)  # Until it has given up waiting.

    with handling_alarms(handle):
        yield interrupt


def test_a_record_that_comes_as_its_thread_is_interrupted_is_given_out_next(
    portal: Portal,
) -> None:
    unread = unread_in(portal, batch_count=3, records_each=2)
    records = iter(sync.Consumer(portal, unread))

    with interrupting() as unread.on_taken, pytest.raises(Interrupted):
        next(records)

    assert [record.offset for record in records] == [0, 1, 2, 3, 4, 5]


def test_a_batch_that_comes_as_its_thread_is_interrupted_is_given_out_next(
    portal: Portal,
) -> None:
    unread = unread_in(portal, batch_count=3, records_each=2)
    batches = sync.Consumer(portal, unread).batches()

    with interrupting() as unread.on_taken, pytest.raises(Interrupted):
        next(batches)

    assert [batch.base_offset for batch in batches] == [0, 2, 4]


def test_an_event_that_comes_as_its_thread_is_interrupted_is_given_out_next(
    portal: Portal,
) -> None:
    class Source:
        def __init__(self) -> None:
            self.events = ["first", "second", None]

        async def next(self) -> str | None:
            await anyio.lowlevel.checkpoint()
            event = self.events.pop(0)
            interrupt()
            return event

    events: Iterator[object] = iter(Watch(portal, cast("Any", Source())))

    with interrupting() as interrupt, pytest.raises(Interrupted):
        next(events)

    assert [*events] == ["first", "second"]


def test_who_waits_for_a_bounded_time_loses_nothing_by_going_away(portal: Portal) -> None:
    class Source:
        def __init__(self) -> None:
            self.has_come = anyio.Event()

        async def next(self) -> str:
            await self.has_come.wait()
            return "event"

    source = portal.call(Source)
    watch = Watch(portal, cast("Any", source))
    for timeout_s in (0, 0.01):
        with pytest.raises(TimeoutError, match="nothing came within"):
            watch.next(timeout_s)
    with pytest.raises(UsageError, match="timeout_s"):
        watch.next(-1)
    portal.call(source.has_come.set)

    come: list[object] = [watch.next(GUARD_S), watch.next()]

    assert come == ["event", "event"]


def test_records_that_have_arrived_need_no_time(portal: Portal) -> None:
    consumer = sync.Consumer(portal, unread_in(portal, batch_count=2, records_each=2))

    offsets = [consumer.next_record(GUARD_S), consumer.next_record(0), consumer.next_batch(GUARD_S)]

    assert [getattr(one, "offset", None) for one in offsets] == [0, 1, None]
    assert consumer.next_record(GUARD_S) is None


def test_interrupted_at_any_moment_giving_out_what_has_come_loses_no_record(
    portal: Portal,
) -> None:
    """Only that: the standard library's futures may be left locked by who is interrupted as he
    begins to wait."""
    count = 40_000
    consumer = sync.Consumer(portal, unread_in(portal, batch_count=1, records_each=count))
    is_armed = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise Interrupted

    records = iter(consumer)
    got = [next(records).offset]

    # Apart: what Python 3.13 interrupts on its way back to the beginning of a loop, it does not
    # see as within the ``try`` around it.
    def read_on() -> None:
        for record in consumer:
            got.append(record.offset)
            if len(got) == count:
                break

    interrupted_count = 0
    with handling_alarms(interrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        while len(got) < count:
            try:
                is_armed = True
                read_on()
                is_armed = False
            except Interrupted:
                interrupted_count += 1

    assert got == list(range(count))
    assert interrupted_count > 0


def test_a_lock_that_comes_as_its_thread_is_interrupted_is_given_back(
    portal: Portal,
) -> None:
    class Taken:
        token = 1
        is_released = threading.Event()

        async def release(self) -> None:
            await anyio.sleep(0)
            self.is_released.set()

    class Lockable:
        async def acquire(self, timeout_s: float | None) -> Taken:
            await anyio.lowlevel.checkpoint()
            interrupt()
            return Taken()

    with interrupting() as interrupt, pytest.raises(Interrupted):
        Lock(portal, cast("Any", Lockable())).acquire()

    assert Taken.is_released.wait(GUARD_S)


def test_each_thread_gives_back_what_it_took_itself(portal: Portal) -> None:
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


def test_a_fault_of_ours_that_ends_the_event_loop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    async def fail() -> None:
        raise ZeroDivisionError("a fault of ours")

    with LoopThread("trio") as loop:
        monkeypatch.setattr(threading, "excepthook", lambda thread: told.append(thread.exc_value))
        loop.call(trio.lowlevel.spawn_system_task, fail)

    (fault,) = told
    assert isinstance(fault, trio.TrioInternalError)
    assert "a fault of ours" in repr(fault.__cause__)


def test_what_is_started_and_fails_by_a_fault_of_ours_is_told_in_the_log(
    portal: Portal, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for it, who could be told."""

    async def fail() -> None:
        raise ZeroDivisionError("a fault of ours")

    async def nothing() -> None:
        """Two of them, one after the other, end later than what was begun before."""

    portal.start(fail)
    portal.call(nothing)
    portal.call(nothing)

    assert "a fault of ours" in caplog.text
