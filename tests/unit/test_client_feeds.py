"""Watches that share a feed: who is told what, and who holds up whom."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup

from logd.errors import (
    CompactedError,
    LogdError,
    NotLeaderError,
    UnknownTopicError,
    UsageError,
)
from logd.types import GroupId, NodeId
from logd.wire.coordination import Event, Keys, Query
from logd.wire.messages import (
    UnwatchRequest,
    WatchCredit,
    WatchEnded,
    WatchEvents,
    WatchRequest,
    WatchResponse,
)
from logd_client.connection import Answer, Lane
from logd_client.coordination.calls import Calls
from logd_client.coordination.feeds import CREDIT_BYTES, Feed
from logd_client.coordination.watches import GAP, Watch
from logd_client.environment import Environment
from logd_client.event_loop import monotonic_clock
from logd_client.transport import TcpTransport

pytestmark = pytest.mark.anyio

NODE = NodeId(1)
GROUP = GroupId(5)


class Broker:
    """The far end of the connection that all watches of the client go over."""

    node = NODE
    is_open = True

    def __init__(self) -> None:
        self.revision = 10
        self.asked: list[WatchRequest] = []
        self.ended: list[int] = []
        self.credit: dict[int, int] = {}
        self.credit_frames = 0
        self.refusals: list[LogdError] = []
        """For the next requests."""
        self.pushes_with_answer: list[bytes] = []
        """Arrive together with the next answer."""
        self.before_it_is_taken: Callable[[], None] = lambda: None
        """Happens when a watch has been asked for, before it has begun."""
        self.before_it_is_heard: Callable[[], Awaitable[None]] | None = None
        """Happens when an answer has come, before the task that asked has its turn."""
        self.last_received_at = float("inf")  # Never silent.
        self._sinks: dict[int, Feed] = {}

    def push(self, *values: bytes, to: int | None = None) -> None:
        """One change per value: to all that watch, or to the n-th that was asked for."""
        events = []
        for value in values:
            self.revision += 1
            events.append(
                Event(revision=self.revision, kind="key", name=b"k", change="put", value=value)
            )
        self.tell(events, revision=self.revision, to=to)

    def tell(self, events: list[Event], *, revision: int, to: int | None = None) -> None:
        body = msgspec.msgpack.encode(events)
        for request in self.asked if to is None else [self.asked[to]]:
            sink = self._sinks.get(request.watch)
            if sink is not None:
                message = WatchEvents(
                    watch=request.watch, generation=request.generation, revision=revision
                )
                self.credit[request.watch] -= len(body)
                sink.on_events(message, body)

    def end(self, number: int, error: LogdError) -> None:
        request = self.asked[number]
        ended = WatchEnded(watch=request.watch, generation=request.generation, error=cast("Any", 0))
        self._sinks[request.watch].on_ended(ended, error)

    # --- as a Connection ----------------------------------------------------------------

    def add_watch(self, watch: int, sink: Feed) -> None:
        self._sinks[watch] = sink

    def remove_watch(self, watch: int) -> None:
        del self._sinks[watch]

    async def exchange(self, request: WatchRequest, body: bytes, timeout_s: float) -> Answer:
        await anyio.lowlevel.checkpoint()
        if self.refusals:
            raise self.refusals.pop(0)
        self.before_it_is_taken()
        self.asked.append(request)
        self.credit[request.watch] = request.credit_bytes
        answer = Answer(WatchResponse(revision=self.revision), b"")
        values, self.pushes_with_answer = self.pushes_with_answer, []
        if values:
            self.push(*values, to=-1)
        if self.before_it_is_heard is not None:
            await self.before_it_is_heard()
        return answer

    def post_credit(self, credit: WatchCredit) -> None:
        self.credit_frames += 1
        if credit.watch in self.credit:  # Else it is of a watch that has not begun: dropped.
            self.credit[credit.watch] += credit.bytes

    def dismiss(self, message: UnwatchRequest) -> None:
        self.ended.append(message.watch)


class Client:
    """What watches use of ``Calls`` and ``Routing``."""

    def __init__(self, broker: Broker, tasks: TaskGroup) -> None:
        self.broker = broker
        self.tasks = tasks
        self.routing = self
        self.clock = monotonic_clock()
        self.environment = Environment(TcpTransport(), self.clock, lambda: 0, random.Random(0))
        self.request_timeout_s = 60.0
        self.on_close: dict[object, Callable[[], None]] = {}
        self.feeds: dict[object, Feed] = {}
        self._subscriptions = 0

    def watch(self, revision: int | None = None, *, tells_gaps: bool = False) -> Watch:
        return Watch(cast("Calls", self), "n", "key", b"k", None, revision, tells_gaps=tells_gaps)

    def next_subscription(self) -> int:
        self._subscriptions += 1
        return self._subscriptions

    async def group_of(self, namespace: str) -> GroupId:
        return GROUP

    async def find_leader(
        self, group: GroupId, lane: Lane, failures: int, suspect: NodeId | None
    ) -> Broker:
        return self.broker

    async def query(self, namespace: str, query: Query) -> Keys:
        await anyio.lowlevel.checkpoint()
        return Keys(revision=self.broker.revision)


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    async with anyio.create_task_group() as tasks:
        yield Client(Broker(), tasks)
        tasks.cancel_scope.cancel()


def arrived(watch: Watch) -> list[bytes]:
    found = []
    while (event := watch.take_arrived()) is not None:
        found.append(event.value)
    return found


async def test_watches_of_the_same_from_now_on_share_a_feed() -> None:
    async with client() as one, one.watch() as first, one.watch() as second, one.watch(3) as other:
        one.broker.push(b"a")
        one.broker.push(b"b", b"c")

        assert arrived(first) == arrived(second) == arrived(other) == [b"a", b"b", b"c"]
        assert [request.revision for request in one.broker.asked] == [None, 3]


async def test_a_broker_that_knows_no_such_partition_yet_is_asked_again() -> None:
    """It was created a moment ago, and that broker has not heard of it."""
    async with client() as told:
        told.broker.refusals = [UnknownTopicError("there is no such partition")]
        async with told.watch() as watch:
            told.broker.push(b"1")
            assert (await anext(watch)).value == b"1"


async def test_who_joins_is_told_nothing_of_before() -> None:
    async with client() as one, one.watch() as first:
        one.broker.push(b"before")
        late = one.watch()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late.__aenter__)
            await anyio.lowlevel.checkpoint()
            one.broker.push(b"meanwhile")  # Before its question was answered.
        one.broker.push(b"after")

        assert arrived(first) == [b"before", b"meanwhile", b"after"]
        told = arrived(late)
        assert told[-1] == b"after"
        assert b"before" not in told
        await late.aclose()


async def test_a_change_that_arrives_after_a_watch_has_begun_is_old_if_its_revision_is() -> None:
    async with client() as one, one.watch() as first:
        one.broker.revision += 1  # Committed, and on its way.
        async with one.watch() as late:
            one.broker.revision -= 1
            one.broker.push(b"on its way")
            one.broker.push(b"new")

            assert arrived(late) == [b"new"]
        assert arrived(first) == [b"on its way", b"new"]


async def test_a_second_task_that_iterates_is_told_so_since_only_one_would_be_woken() -> None:
    async with client() as one, one.watch() as watch, anyio.create_task_group() as tasks:
        told: list[Event] = []

        async def iterate() -> None:
            told.append(await anext(watch))

        tasks.start_soon(iterate)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5), pytest.raises(UsageError, match="another task is iterating"):
            await anext(watch)
        one.broker.push(b"a", b"b")
        await anyio.wait_all_tasks_blocked()

        assert [event.value for event in told] == [b"a"]
        assert (await anext(watch)).value == b"b"


async def test_a_feed_ends_with_the_last_who_listens() -> None:
    async with client() as one:
        first, second = one.watch(), one.watch()
        await first.__aenter__()
        await second.__aenter__()
        await first.aclose()
        assert one.broker.ended == []
        await second.aclose()
        assert one.broker.ended == [one.broker.asked[0].watch]

        async with one.watch() as again:
            one.broker.push(b"a")
            assert arrived(again) == [b"a"]
        assert len(one.broker.asked) == 2


async def test_the_last_may_leave_when_the_answer_has_come_and_nobody_has_heard_it() -> None:
    """As one who is cancelled then.  A fault in the feed's task would end the whole client."""
    async with client() as one:
        watch = one.watch()
        one.broker.before_it_is_heard = watch.aclose
        await watch.__aenter__()
        await anyio.wait_all_tasks_blocked()

        assert one.broker.ended == [one.broker.asked[0].watch]


async def test_credit_comes_back_when_the_first_has_taken_and_once() -> None:
    async with client() as one, one.watch() as fast, one.watch() as slow:
        watch = one.broker.asked[0].watch
        one.broker.push(bytes(CREDIT_BYTES // 8))
        one.broker.push(bytes(CREDIT_BYTES // 8))
        assert one.broker.credit[watch] < CREDIT_BYTES * 3 / 4

        arrived(fast)
        assert one.broker.credit[watch] == CREDIT_BYTES
        assert len(arrived(slow)) == 2
        assert one.broker.credit[watch] == CREDIT_BYTES


async def test_credit_comes_back_in_pieces_that_are_worth_a_frame() -> None:
    """Of small events hundreds share one, and there is always enough left for more."""
    async with client() as one, one.watch() as watch:
        least = CREDIT_BYTES
        for number in range(1000):
            one.broker.push(bytes(2000))
            assert arrived(watch)
            least = min(least, one.broker.credit[one.broker.asked[0].watch])
            assert one.broker.credit_frames <= number // 100

        assert 5 <= one.broker.credit_frames <= 10
        assert least > CREDIT_BYTES / 2


async def test_a_watch_that_begins_anew_has_all_the_credit_that_is_not_owed() -> None:
    async with client() as one, one.watch() as watch:
        for number in range(3):
            for _ in range(100):
                one.broker.push(bytes(2000))
            assert len(arrived(watch)) == 100
            one.broker.end(number, NotLeaderError("moved"))
            while len(one.broker.asked) == number + 1:
                await anyio.sleep(0.01)
            await anyio.wait_all_tasks_blocked()
            assert one.broker.credit[one.broker.asked[-1].watch] == CREDIT_BYTES


async def test_the_credit_of_what_is_taken_while_a_watch_begins_anew_is_not_lost() -> None:
    """All credit is owed, so the new watch begins with next to none: what is given for it before
    it has begun the broker drops."""
    async with client() as one, one.watch() as watch:
        for _ in range(4):
            one.broker.push(bytes(CREDIT_BYTES // 4))
        one.broker.before_it_is_taken = lambda: arrived(watch).clear()
        one.broker.end(0, NotLeaderError("moved"))
        while len(one.broker.asked) == 1:
            await anyio.sleep(0.01)
        await anyio.wait_all_tasks_blocked()

        assert one.broker.credit[one.broker.asked[1].watch] >= CREDIT_BYTES


async def test_who_falls_behind_goes_on_alone_and_misses_nothing() -> None:
    values = [b"%04d" % number + bytes(40_000) for number in range(60)]
    async with client() as one, one.watch() as fast, one.watch() as slow:
        told = []
        for value in values[:40]:
            one.broker.push(value, to=0)
            told += arrived(fast)
        await anyio.wait_all_tasks_blocked()
        assert len(one.broker.asked) == 2
        alone = one.broker.asked[1]
        assert alone.revision is not None
        behind = alone.revision - 11  # So many of the values it has.

        one.broker.revision = alone.revision - 1
        for value in values[behind:]:
            one.broker.push(value, to=1)

        assert told == values[:40]
        assert arrived(slow) == values


async def test_a_feed_goes_on_behind_what_it_was_told_for_all_who_listen() -> None:
    async with client() as one, one.watch() as first, one.watch() as second:
        one.broker.push(b"a")
        one.broker.end(0, NotLeaderError("moved"))
        await anyio.wait_all_tasks_blocked()
        one.broker.push(b"b")

        assert one.broker.asked[1].revision == 12
        assert arrived(first) == arrived(second) == [b"a", b"b"]


async def test_of_a_change_that_was_told_in_part_only_the_rest_is_told_by_the_next_broker() -> None:
    def change(*values: bytes, revision: int = 11) -> list[Event]:
        return [
            Event(revision=revision, kind="key", name=value, change="put", value=value)
            for value in values
        ]

    async def move(broker: Broker, number: int) -> None:
        broker.end(number, NotLeaderError("moved"))
        while len(broker.asked) == number + 1:
            await anyio.sleep(0.01)
        await anyio.wait_all_tasks_blocked()

    async with client() as one, one.watch() as watch:
        one.broker.tell(change(b"a", b"b"), revision=10)
        one.broker.tell(change(b"c"), revision=10)
        for number in range(2):  # The second is lost before it has told anything.
            await move(one.broker, number)
            assert one.broker.asked[-1].revision == 11
        one.broker.tell(change(b"a", b"b"), revision=10)
        one.broker.tell(change(b"c", b"d"), revision=10)
        one.broker.tell([*change(b"e"), *change(b"f", revision=12)], revision=12)
        await move(one.broker, 2)
        one.broker.tell(change(b"g", revision=13), revision=13)

        assert one.broker.asked[-1].revision == 13
        assert b"".join(arrived(watch)) == b"abcdefg"
        assert CREDIT_BYTES - 1000 < one.broker.credit[one.broker.asked[-1].watch] <= CREDIT_BYTES


async def test_all_who_listen_learn_that_changes_are_lost() -> None:
    compacted = CompactedError("gone", 99)
    async with (
        client() as one,
        one.watch() as first,
        one.watch() as second,
        one.watch(tells_gaps=True) as looks_again,
    ):
        one.broker.refusals = [compacted] * 2
        one.broker.end(0, NotLeaderError("moved"))
        one.broker.end(1, NotLeaderError("moved"))
        for watch in (first, second):
            with pytest.raises(CompactedError):
                await watch.next()
        gap = await looks_again.next()
        await anyio.wait_all_tasks_blocked()

        assert gap is not None
        assert gap.change == GAP
        assert one.broker.asked[-1].revision is None  # It looks, and hears on.


async def test_what_changes_after_a_gap_was_told_is_told_too() -> None:
    """Whoever is told looks at once, and may see nothing yet of what comes a moment later."""
    async with client() as one, one.watch(tells_gaps=True) as watch:
        one.broker.refusals = [CompactedError("gone", 99)]
        one.broker.end(0, NotLeaderError("moved"))
        gap = await watch.next()
        late = one.watch(tells_gaps=True)
        await late.__aenter__()
        one.broker.push(b"a moment later")

        assert gap is not None
        assert gap.change == GAP
        assert arrived(watch) == arrived(late) == [b"a moment later"]
        await late.aclose()


async def test_a_gap_is_told_before_what_comes_behind_it() -> None:
    async with client() as one, one.watch(tells_gaps=True) as watch:
        one.broker.refusals = [CompactedError("gone", 99)]
        one.broker.pushes_with_answer = [b"behind it"]
        one.broker.end(0, NotLeaderError("moved"))
        first, second = await watch.next(), await watch.next()

        assert first is not None
        assert first.change == GAP
        assert second is not None
        assert second.value == b"behind it"


async def test_who_waits_for_an_event_is_woken_and_by_closing_too() -> None:
    async with client() as one:
        heard: list[bytes | None] = []

        async def listen(watch: Watch) -> None:
            while (event := await watch.next()) is not None:
                heard.append(event.value)
            heard.append(None)

        async with one.watch() as watch, anyio.create_task_group() as tasks:
            tasks.start_soon(listen, watch)
            await anyio.wait_all_tasks_blocked()
            one.broker.push(b"a")
            await anyio.wait_all_tasks_blocked()
            await watch.aclose()

    assert heard == [b"a", None]


async def test_closing_ends_the_iteration_whatever_has_arrived() -> None:
    async with client() as one, one.watch() as watch:
        one.broker.push(b"a", b"b")
        one.broker.push(b"c")
        heard = []
        async for event in watch:
            heard.append(event.value)
            await watch.aclose()

    assert heard == [b"a"]


async def test_cancelled_iteration_loses_no_event() -> None:
    async with client() as one, one.watch() as watch:
        heard: list[bytes] = []

        async def listen(scope: anyio.CancelScope) -> None:
            with scope:
                event = await watch.next()
                assert event is not None
                heard.append(event.value)

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(listen, scope)
            await anyio.wait_all_tasks_blocked()
            one.broker.push(b"a")
            scope.cancel()
        one.broker.push(b"b")
        while len(heard) < 2:
            await listen(anyio.CancelScope())

    assert heard == [b"a", b"b"]
