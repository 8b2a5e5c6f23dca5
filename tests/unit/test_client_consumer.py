"""Iterating over a consumer: what is given out, in which order, and what ends it.

The broker is played by the tests, in virtual time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from operator import sub
from typing import Any, cast

import pytest
import trio
import trio.testing

from logd.errors import (
    LogdError,
    MalformedBatchError,
    OffsetOutOfRangeError,
    SubscriptionLostError,
    UsageError,
)
from logd.limits import KIB, MIB
from logd.types import GroupId, NodeId
from logd.wire.messages import (
    Credit,
    Deliver,
    OffsetsResponse,
    SubscribeRequest,
    SubscribeResponse,
    SubscriptionEnded,
)
from logd_client.background import Background
from logd_client.connection import Answer, Completion, Connection
from logd_client.consumer import Consumer
from logd_client.consumer_options import CREDIT_BYTES_MIN, ConsumerOptions
from logd_client.partition_feed import PartitionFeed
from logd_client.records import Batch, Record
from tests.unit.test_client_cursor import data, malformed
from tests.unit.test_client_routing import Told, routing, topic

PATIENCE_S = 60.0


class Broker:
    """Takes every subscription at offset 0, and delivers what the test says."""

    node = NodeId(1)
    name = "broker 1"
    is_open = True
    last_received_at = 0.0

    def __init__(self) -> None:
        self._sinks: dict[int, PartitionFeed] = {}
        self._subscribed: dict[int, SubscribeRequest] = {}
        """By partition."""
        self.credit_bytes = 0
        """What was given back of it."""
        self.asked_count = 0
        self.is_slow = False
        """It takes subscriptions only when the test says so (``answer``)."""
        self._answer: Callable[[], None] | None = None
        self.data_end: int | None = None
        """Where the log ends, for who asks; None: it answers nobody."""

    def add_sink(self, subscription: int, sink: PartitionFeed) -> None:
        self._sinks[subscription] = sink

    def remove_sink(self, subscription: int) -> None:
        del self._sinks[subscription]

    def dismiss(self, message: object) -> None:
        """It pushes only what the test says."""

    def submit(self, message: Any, on_done: Completion) -> None:
        if isinstance(message, SubscribeRequest):
            self._subscribed[message.group % 100] = message
            response = SubscribeResponse(position=message.value, log_start=0, commit_offset=0)
            self._answer = partial(on_done, Answer(response, b""))
            if not self.is_slow:
                self.answer()

    def answer(self) -> None:
        assert self._answer is not None
        self._answer()

    def post_credit(self, credit: Credit) -> None:
        self.credit_bytes += credit.bytes

    async def request(self, *_: object) -> OffsetsResponse:
        self.asked_count += 1
        if self.data_end is None:
            await trio.sleep_forever()
            raise AssertionError("unreachable")
        return OffsetsResponse(log_start=0, commit_offset=self.data_end, data_end=self.data_end)

    def generation(self, partition: int) -> int:
        """Larger after each time that it was subscribed to."""
        return self._subscribed[partition].generation

    def credit_given(self) -> list[int]:
        return [request.credit_bytes for _, request in sorted(self._subscribed.items())]

    def reads(self, partition: int) -> bool:
        """Whether somebody is subscribed to it."""
        return self._subscribed[partition].subscription in self._sinks

    def deliver(self, partition: int, base_offset: int, *values: bytes) -> None:
        group = GroupId(self._subscribed[partition].group)
        self.deliver_bytes(
            partition, data(base_offset, *values, group=group), base_offset + len(values)
        )

    def deliver_bytes(self, partition: int, body: bytes, end: int) -> None:
        request = self._subscribed[partition]
        message = Deliver(
            subscription=request.subscription,
            generation=request.generation,
            next_offset=end,
            commit_offset=end,
        )
        self._sinks[request.subscription].on_delivered(message, body)

    def end(self, partition: int, error: LogdError) -> None:
        request = self._subscribed[partition]
        ended = SubscriptionEnded(
            subscription=request.subscription,
            generation=request.generation,
            error=cast("Any", None),
        )
        self._sinks[request.subscription].on_ended(ended, error)


class Served(Told):
    """The routing of a client that has found its broker."""

    def __init__(self, tasks: Background) -> None:
        super().__init__(tasks)
        self.broker = Broker()

    async def leader_connection(self, *_: object) -> Connection:
        return cast("Connection", self.broker)


@asynccontextmanager
async def reading(
    partition_count: int = 1, **options: Any
) -> AsyncIterator[tuple[Consumer, Broker]]:
    described = topic(partition_count)
    async with routing(described, described, Served) as served:
        assert isinstance(served, Served)
        async with Consumer(served, "t", ConsumerOptions(start="earliest", **options)) as consumer:
            await trio.testing.wait_all_tasks_blocked()
            yield consumer, served.broker


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            await story()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def told(record: Record | None) -> tuple[int, int, bytes | None]:
    assert record is not None
    return record.partition, record.offset, record.value


async def take(consumer: Consumer, count: int) -> list[tuple[int, int, bytes | None]]:
    return [told(await consumer.next_record()) for _ in range(count)]


# --- in which order -------------------------------------------------------------------------


def test_records_come_in_order_each_once_and_partitions_take_turns_batch_by_batch() -> None:
    async def story() -> None:
        async with reading(2) as (consumer, broker):
            for offset in (0, 2):
                broker.deliver(0, offset, b"a", b"b")
            broker.deliver(1, 0, b"x")
            broker.deliver(1, 1, b"y")

            assert await take(consumer, 6) == [
                (0, 0, b"a"),
                (0, 1, b"b"),
                (1, 0, b"x"),
                (0, 2, b"a"),
                (0, 3, b"b"),
                (1, 1, b"y"),
            ]

    play(story)


def test_batches_and_records_may_alternate_and_nothing_comes_twice() -> None:
    async def story() -> None:
        async with reading() as (consumer, broker):
            broker.deliver(0, 0, b"a", b"b", b"c")
            broker.deliver(0, 3, b"d")

            first = await consumer.next_record()
            rest = await consumer.next_batch()
            last = await consumer.next_record()

            assert told(first) == (0, 0, b"a")
            assert isinstance(rest, Batch)
            assert (list(rest.offsets), list(rest.values)) == ([1, 2], [b"b", b"c"])
            assert told(last) == (0, 3, b"d")

    play(story)


def test_both_ways_of_iterating_go_over_all_that_there_is() -> None:
    async def story() -> None:
        async with reading(stop={0: 3}) as (consumer, broker):
            broker.deliver(0, 0, b"a", b"b")
            broker.deliver(0, 2, b"c")
            assert [record.value async for record in consumer] == [b"a", b"b", b"c"]
        async with reading(stop={0: 3}) as (consumer, broker):
            broker.deliver(0, 0, b"a", b"b")
            broker.deliver(0, 2, b"c")
            assert [list(batch.offsets) async for batch in consumer.batches()] == [[0, 1], [2]]

    play(story)


def test_the_position_is_that_of_the_next_record_in_the_middle_of_a_batch_too() -> None:
    async def story() -> None:
        async with reading(2) as (consumer, broker):
            broker.deliver(0, 0, b"a", b"b")
            positions = []
            for _ in range(2):
                await consumer.next_record()
                positions.append((consumer.position(0), consumer.position(1), consumer.lag))

            assert positions == [(1, 0, 1), (2, 0, 0)]
            with pytest.raises(UsageError, match=r"reads partitions \[0, 1\]"):
                consumer.position(2)

    play(story)


# --- waiting ------------------------------------------------------------------------------


@pytest.mark.parametrize("is_cancelled_first", [False, True])
def test_whoever_is_cancelled_as_a_record_arrives_has_it_or_the_next_one_gets_it(
    *, is_cancelled_first: bool
) -> None:
    async def story() -> None:
        async with reading() as (consumer, broker), trio.open_nursery() as nursery:
            got: list[tuple[int, int, bytes | None]] = []
            scope = trio.CancelScope()

            async def iterate() -> None:
                with scope:
                    got.extend(await take(consumer, 1))

            nursery.start_soon(iterate)
            await trio.testing.wait_all_tasks_blocked()
            if is_cancelled_first:
                scope.cancel()
                broker.deliver(0, 0, b"a", b"b")
            else:
                broker.deliver(0, 0, b"a", b"b")
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()

            got += await take(consumer, 2 - len(got))
            assert got == [(0, 0, b"a"), (0, 1, b"b")]

    play(story)


def test_only_one_task_iterates_and_the_other_does_not_disturb_it() -> None:
    async def story() -> None:
        async with reading() as (consumer, broker), trio.open_nursery() as nursery:
            got: list[object] = []

            async def wait() -> None:
                got.append(told(await consumer.next_record()))

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(UsageError, match="another task is iterating"):
                await consumer.next_record()

            broker.deliver(0, 0, b"a")
            await trio.testing.wait_all_tasks_blocked()
            assert got == [(0, 0, b"a")]
            broker.deliver(0, 1, b"b")
            assert await take(consumer, 1) == [(0, 1, b"b")]

    play(story)


def test_whoever_waits_again_before_taking_anything_loses_nothing() -> None:
    """As a thread does that was interrupted, by a signal, as its batch came."""

    async def story() -> None:
        async with reading() as (consumer, broker):
            broker.deliver(0, 0, b"a")
            broker.deliver(0, 1, b"b")

            assert await consumer.wait_for_batch()
            assert await consumer.wait_for_batch()

            assert await take(consumer, 2) == [(0, 0, b"a"), (0, 1, b"b")]

    play(story)


def test_others_run_now_and_then_however_much_has_arrived() -> None:
    """Of what is there already nothing has to be waited for."""

    async def story() -> None:
        async with reading() as (consumer, broker), trio.open_nursery() as nursery:
            for batch in range(100):
                broker.deliver(0, 100 * batch, *[b"v"] * 100)
            turns = 0

            async def run() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            nursery.start_soon(run)
            await take(consumer, 10_000)

            assert 3 <= turns <= 20
            nursery.cancel_scope.cancel()

    play(story)


def test_the_credit_of_a_batch_is_given_back_once_the_caller_asks_for_more() -> None:
    """A slow caller is sent no more than it has room for."""

    async def story() -> None:
        async with reading(credit_bytes=64 * KIB) as (consumer, broker):
            broker.deliver(0, 0, bytes(40_000))
            await consumer.next_record()
            assert broker.credit_bytes == 0

            with trio.move_on_after(1):
                await consumer.next_record()

            assert broker.credit_bytes > 40_000

    play(story)


def test_the_credit_of_what_was_read_while_a_subscription_is_begun_anew_is_given_back() -> None:
    """All credit is held, so the new subscription begins with none: nothing would come any more
    that has the consumer look at what it owes."""

    async def story() -> None:
        async with reading(credit_bytes=64 * KIB) as (consumer, broker), trio.open_nursery() as n:
            broker.deliver(0, 0, bytes(70_000))
            broker.is_slow = True
            broker.end(0, SubscriptionLostError("reading failed"))
            await trio.sleep(1)
            assert broker.credit_given() == [0]
            await consumer.next_record()
            n.start_soon(consumer.next_record)
            await trio.testing.wait_all_tasks_blocked()

            broker.answer()
            await trio.testing.wait_all_tasks_blocked()

            assert broker.credit_bytes == 64 * KIB
            n.cancel_scope.cancel()

    play(story)


def test_the_credit_of_what_is_passed_over_is_given_back_too() -> None:
    async def story() -> None:
        async with reading(credit_bytes=64 * KIB, on_malformed="skip") as (consumer, broker):
            for offset in range(600):
                broker.deliver_bytes(0, malformed(offset, group=GroupId(100)), offset + 1)

            with trio.move_on_after(1):
                await consumer.next_record()

            assert broker.credit_bytes >= 32 * KIB

    play(story)


def test_partitions_share_the_credit_but_each_has_enough_for_a_delivery() -> None:
    async def story() -> None:
        async with reading(4, credit_bytes=1 * MIB) as (_, broker):
            assert broker.credit_given() == [256 * KIB] * 4
        async with reading(4, credit_bytes=64 * KIB) as (_, broker):
            assert broker.credit_given() == [CREDIT_BYTES_MIN] * 4

    play(story)


# --- ending -------------------------------------------------------------------------------


def test_a_consumer_that_was_not_opened_or_is_open_already_says_so() -> None:
    async def story() -> None:
        described = topic(1)
        async with routing(described, described, Served) as served:
            consumer = Consumer(served, "t", ConsumerOptions(start="earliest"))
            with pytest.raises(UsageError, match="the consumer is not open"):
                await consumer.next_record()
            async with consumer:
                with pytest.raises(UsageError, match="opened once"):
                    await consumer.__aenter__()

    play(story)


@pytest.mark.parametrize("has_some_at_hand", [False, True])
@pytest.mark.parametrize("by_batch", [False, True])
def test_closing_ends_the_iteration_whatever_has_arrived(
    *, by_batch: bool, has_some_at_hand: bool
) -> None:
    async def story() -> None:
        async with reading() as (consumer, broker), trio.open_nursery() as nursery:
            got: list[bytes | None] = []
            if has_some_at_hand:
                broker.deliver(0, 0, b"a", b"b")
                broker.deliver(0, 2, b"c")
                await consumer.next_record()

            async def iterate() -> None:
                if by_batch:
                    got.extend([batch.values[0] async for batch in consumer.batches()])
                else:
                    got.extend([record.value async for record in consumer])
                got.append(b"end")

            if has_some_at_hand:
                await consumer.aclose()
                await iterate()
            else:
                nursery.start_soon(iterate)
                await trio.testing.wait_all_tasks_blocked()
                await consumer.aclose()
                await trio.testing.wait_all_tasks_blocked()

            assert got == [b"end"]
            assert not broker.reads(0)
            assert consumer.position(0) == has_some_at_hand

    play(story)


@pytest.mark.parametrize(
    "use", [Consumer.aclose, Consumer.next_record, lambda it: it.__aexit__(None, None, None)]
)
def test_an_event_loop_of_another_thread_is_told_and_closes_nothing(
    use: Callable[[Consumer], Awaitable[object]],
) -> None:
    """What it would cancel there is not for other threads."""

    async def story() -> None:
        async with reading() as (consumer, broker):

            async def use_it() -> None:
                with pytest.raises(UsageError, match="in another event loop"):
                    await use(consumer)

            with ThreadPoolExecutor() as threads:
                threads.submit(asyncio.run, use_it()).result(10)

            broker.deliver(0, 0, b"a")
            assert await take(consumer, 1) == [(0, 0, b"a")]

    play(story)


def test_who_ends_the_iteration_by_closing_goes_on_later_with_what_was_not_given_out() -> None:
    """A service that is told to stop closes its consumer; behind its loop it keeps the position."""

    async def story() -> None:
        async with reading() as (consumer, broker):
            broker.deliver(0, 0, b"a", b"b", b"c")
            values = []
            async for record in consumer:
                values.append(record.value)
                await consumer.aclose()

            assert values == [b"a"]
            assert consumer.position(0) == 1

    play(story)


def test_it_ends_when_every_partition_is_at_its_stop_and_asks_no_more_of_those_that_are() -> None:
    async def story() -> None:
        async with (
            reading(2, stop={0: 1, 1: 2}) as (consumer, broker),
            trio.open_nursery() as nursery,
        ):
            got: list[tuple[int, int, bytes | None]] = []
            has_ended = trio.Event()

            async def iterate() -> None:
                got.extend([told(record) async for record in consumer])
                has_ended.set()

            nursery.start_soon(iterate)
            broker.deliver(0, 0, b"a", b"beyond")
            broker.deliver(1, 0, b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert not has_ended.is_set()
            assert (broker.reads(0), broker.reads(1)) == (False, True)

            broker.deliver(1, 1, b"y")
            await has_ended.wait()

            assert got == [(0, 0, b"a"), (1, 0, b"x"), (1, 1, b"y")]

    play(story)


def test_what_arrived_before_a_partition_failed_is_given_out_first_and_the_failure_each_time() -> (
    None
):
    async def story() -> None:
        async with reading(2) as (consumer, broker):
            broker.deliver(0, 0, b"a")
            broker.end(0, OffsetOutOfRangeError("gone", 5, 9))
            assert await take(consumer, 1) == [(0, 0, b"a")]

            for _ in range(2):
                with pytest.raises(OffsetOutOfRangeError, match="t/0: gone") as caught:
                    await consumer.next_record()
                assert (caught.value.log_start, caught.value.log_end) == (5, 9)

    play(story)


def test_what_a_broker_says_of_a_partition_that_is_read_to_its_stop_is_no_failure() -> None:
    async def story() -> None:
        async with reading(2, stop={0: 1, 1: 1}) as (consumer, broker):
            broker.deliver(0, 0, b"a")
            broker.end(0, OffsetOutOfRangeError("gone", 5, 9))
            broker.deliver(1, 0, b"x")

            assert [record.value async for record in consumer] == [b"a", b"x"]

    play(story)


def test_a_failure_that_comes_while_somebody_waits_is_told_at_once() -> None:
    async def story() -> None:
        async with reading() as (consumer, broker), trio.open_nursery() as nursery:

            async def fail() -> None:
                await trio.sleep(1)
                broker.end(0, OffsetOutOfRangeError("gone", 5, 9))

            nursery.start_soon(fail)
            with trio.fail_after(2), pytest.raises(OffsetOutOfRangeError):
                await consumer.next_record()

    play(story)


def test_a_batch_that_cannot_be_read_is_told_again_and_again_and_nothing_is_passed_over() -> None:
    async def story() -> None:
        async with reading(2) as (consumer, broker):
            broker.deliver_bytes(0, malformed(0, group=GroupId(100)), 1)
            broker.deliver(1, 0, b"x")
            broker.deliver(0, 1, b"b")

            with pytest.raises(MalformedBatchError):
                await consumer.next_record()
            assert await take(consumer, 1) == [(1, 0, b"x")]
            with pytest.raises(MalformedBatchError):
                await consumer.next_record()
            assert consumer.position(0) == 0

    play(story)


def test_damage_that_comes_now_and_then_is_fetched_again_however_long_it_goes_on() -> None:
    """Only if one delivery after the other is damaged the reader is told."""

    async def story() -> None:
        async with reading() as (consumer, broker), trio.open_nursery() as nursery:
            got: list[tuple[int, int, bytes | None]] = []

            async def iterate() -> None:
                got.extend(await take(consumer, 5))

            nursery.start_soon(iterate)
            for offset in range(5):
                damaged = bytearray(data(offset, b"v", group=GroupId(100)))
                damaged[-1] ^= 1
                broker.deliver_bytes(0, bytes(damaged), offset + 1)
                await trio.sleep(5)
                broker.deliver(0, offset, b"v")
                await trio.testing.wait_all_tasks_blocked()

        assert got == [(0, offset, b"v") for offset in range(5)]

    play(story)


def test_whoever_wants_to_skips_what_cannot_be_read_and_hears_how_much() -> None:
    async def story() -> None:
        async with reading(on_malformed="skip") as (consumer, broker):
            broker.deliver_bytes(0, malformed(0, group=GroupId(100)), 1)
            broker.deliver(0, 1, b"b")

            assert await take(consumer, 1) == [(0, 1, b"b")]
            assert consumer.malformed_count == 1

    play(story)


# --- connections that fell silent -----------------------------------------------------------


def test_a_connection_that_delivers_nothing_is_asked_once_whether_it_still_works() -> None:
    async def story() -> None:
        async with reading(3) as (_, broker):
            broker.last_received_at = trio.current_time() + 2
            await trio.sleep(2.5)
            assert broker.asked_count == 0

            await trio.sleep(5)

            assert broker.asked_count == 1

    play(story)


@pytest.mark.parametrize("is_lively", [False, True])
def test_a_subscription_that_stands_still_while_the_log_goes_on_is_begun_anew(
    *, is_lively: bool
) -> None:
    """Whoever lost it: the connection lives, its broker leads, and nothing would ever come."""

    async def story() -> None:
        async with reading(2) as (consumer, broker):
            broker.last_received_at = math.inf if is_lively else 0
            broker.deliver(0, 0, b"a")
            await consumer.next_record()
            broker.data_end = 2
            first = broker.generation(0)
            with trio.move_on_after(PATIENCE_S / 2):
                await consumer.next_record()

            assert broker.generation(0) > first
            broker.deliver(0, 1, b"b")
            assert await take(consumer, 1) == [(0, 1, b"b")]

    play(story)


@pytest.mark.parametrize("waits_for_its_reader", [False, True])
def test_a_subscription_that_goes_on_or_waits_for_its_reader_is_left_alone(
    *, waits_for_its_reader: bool
) -> None:
    async def story() -> None:
        async with reading() as (consumer, broker):
            broker.data_end = 100
            begun = broker.generation(0)
            for offset in range(20):
                if offset == 0 or not waits_for_its_reader:
                    broker.deliver(0, offset, b"a")
                    await consumer.next_batch()
                await trio.sleep(2)

            assert broker.asked_count > 5
            assert broker.generation(0) == begun

    play(story)


def test_one_that_is_only_slow_is_begun_anew_ever_more_rarely() -> None:
    """Else a broker whose disk takes longer for a read than we wait would never come to its end."""

    async def story() -> None:
        async with reading() as (consumer, broker):
            broker.data_end = 1
            times = [trio.current_time()]
            generation = broker.generation(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consumer.next_record)
                while len(times) < 4:
                    await trio.sleep(0.1)
                    if broker.generation(0) != generation:
                        generation = broker.generation(0)
                        times.append(trio.current_time())
                nursery.cancel_scope.cancel()

            first, second, third = map(sub, times[1:], times)
            assert second > 1.5 * first
            assert third > 1.5 * second

    play(story)
