"""A producer before its records have left: what is refused, and what holds up whom."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import anyio
import anyio.to_thread
import pytest
import trio
import trio.testing

from logd.errors import (
    DeliveryTimeoutError,
    FencedError,
    NotLeaderError,
    PartialAppendError,
    UsageError,
    WouldBlock,
)
from logd.limits import BATCH_BYTES_MAX, KIB
from logd.record.timestamps import TIMESTAMP_MS_MAX
from logd.types import GroupId
from logd_client.background import task_group
from logd_client.coordination.fences import Fence
from logd_client.delivery import Ack, Ticket
from logd_client.partitioner import partition_for_key
from logd_client.producer import BATCH_BYTES_DEFAULT, DELIVERY_TIMEOUT_MS_DEFAULT, Producer
from tests.support.producing import Leader, in_virtual_time, opened

# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("timestamp_ms", [TIMESTAMP_MS_MAX + 1, -TIMESTAMP_MS_MAX - 1, 1.0])
@in_virtual_time
async def test_a_time_that_no_batch_can_hold_fails_alone(timestamp_ms: Any) -> None:
    async with opened() as (cluster, producer):
        other = producer.append_nowait(b"other")
        with pytest.raises(UsageError, match="timestamp_ms"):
            producer.append_nowait(b"value", timestamp_ms=timestamp_ms)
        with pytest.raises(UsageError, match="timestamp_ms"):
            await producer.append_many([b"value"], timestamp_ms=timestamp_ms)
        await trio.testing.wait_all_tasks_blocked()
        cluster.leaders[0].answer()

        assert (await other).offset == 0


@pytest.mark.parametrize(
    "use",
    [
        lambda producer: producer.append(b"value"),
        lambda producer: producer.enqueue(b"value"),
        lambda producer: producer.append_many([b"value"]),
        lambda producer: anyio.to_thread.run_sync(producer.append_nowait, b"value"),
        lambda producer: producer.raise_fence(Fence(1, 1)),
        lambda producer: producer.flush(),
        lambda producer: producer.aclose(),
    ],
)
@in_virtual_time
async def test_an_event_loop_of_another_thread_is_told_and_queues_nothing(
    use: Callable[[Producer], Awaitable[object]],
) -> None:
    """It would wait there for ever: what wakes it is not for other threads."""
    async with opened() as (cluster, producer):

        async def use_it() -> None:
            with anyio.fail_after(5), pytest.raises(UsageError, match="in another event loop"):
                await use(producer)

        await trio.to_thread.run_sync(asyncio.run, use_it())
        await trio.testing.wait_all_tasks_blocked()

        assert cluster.leaders[0].unanswered == []


def in_another_thread(function: Callable[[], object]) -> object:
    """What ``function`` returns there; the event loop of this thread stands still meanwhile."""
    with ThreadPoolExecutor() as threads:
        return threads.submit(function).result(10)


@in_virtual_time
async def test_another_thread_is_told_also_when_its_record_could_join_an_open_batch() -> None:
    async with opened() as (cluster, producer):
        producer.append_nowait(b"own")
        with pytest.raises(UsageError, match="in another event loop") as caught:
            in_another_thread(partial(producer.append_nowait, b"other"))
        await trio.testing.wait_all_tasks_blocked()

        assert not caught.value.may_have_applied
        assert [count for _, count in cluster.leaders[0].unanswered] == [1]


async def settle(ticket: Ticket) -> Ack:
    with anyio.fail_after(5):
        return await ticket


@in_virtual_time
async def test_a_ticket_is_not_waited_for_in_another_thread_and_tells_there_what_is_known() -> None:
    """It would wait there for ever: what wakes it is not for other threads."""
    async with opened() as (cluster, producer):
        ticket = producer.append_nowait(b"value")
        with pytest.raises(UsageError, match="in another event loop") as caught:
            in_another_thread(lambda: asyncio.run(settle(ticket)))
        await trio.testing.wait_all_tasks_blocked()
        cluster.leaders[0].answer()
        await ticket

        assert caught.value.may_have_applied
        assert in_another_thread(lambda: asyncio.run(settle(ticket))) == await ticket


@in_virtual_time
async def test_who_was_told_to_ask_elsewhere_has_not_heard_of_a_failure() -> None:
    async with opened() as (cluster, producer):
        ticket = producer.append_nowait(b"value")
        with pytest.raises(UsageError, match="in another event loop"):
            in_another_thread(lambda: asyncio.run(settle(ticket)))
        await trio.testing.wait_all_tasks_blocked()
        cluster.leaders[0].refuse(FencedError("no"))

        with pytest.raises(FencedError):
            await producer.flush()


@pytest.mark.parametrize("expected_offset", ["0", 1.0, True, -1, 2**63])
@in_virtual_time
async def test_an_expectation_that_no_log_can_meet_never_leaves(expected_offset: Any) -> None:
    async with opened() as (cluster, producer):
        with pytest.raises(UsageError, match="expected_offset must be"):
            await producer.append(b"value", partition=0, expected_offset=expected_offset)
        await trio.testing.wait_all_tasks_blocked()

        assert cluster.leaders[0].unanswered == []


# --- what is waited for -----------------------------------------------------------------


@in_virtual_time
async def test_a_batch_that_is_old_enough_waits_for_its_leader_without_spinning() -> None:
    async with opened(linger_ms=10) as (cluster, producer):
        cluster.leader_is_known = trio.Event()
        producer.append_nowait(b"value")
        await trio.sleep(1)
        assert cluster.leaders[0].unanswered == []

        cluster.leader_is_known.set()
        await trio.testing.wait_all_tasks_blocked()

        assert len(cluster.leaders[0].unanswered) == 1


@pytest.mark.parametrize("partition_count", [2, 3, 4])
@pytest.mark.parametrize("full_batches", [1, 2, 3])
@in_virtual_time
async def test_calls_with_something_left_over_reach_every_partition_alike(
    full_batches: int, partition_count: int
) -> None:
    """However the number of their batches and that of the partitions go together."""
    batch_bytes = 8 * KIB
    values = [bytes(KIB // 2)] * (17 * full_batches)  # Not quite 16 of them fit a batch.
    async with opened(partition_count, batch_bytes=batch_bytes) as (cluster, producer):
        for leader in cluster.leaders:
            leader.answers_at_once = True
        for _ in range(12):
            await producer.append_many(values)

        shares = [leader.end_offset for leader in cluster.leaders]
        assert max(shares) <= 2 * min(shares)


@in_virtual_time
async def test_a_partition_that_was_without_a_leader_for_long_gets_its_share_again() -> None:
    async with opened(2, delivery_timeout_ms=1_000) as (cluster, producer):
        lost = producer.append_nowait(b"value", partition=0)
        await trio.testing.wait_all_tasks_blocked()
        cluster.without_leader = {GroupId(1)}
        cluster.leaders[0].refuse(NotLeaderError("stepped down"))
        with pytest.raises(DeliveryTimeoutError):
            await lost
        await trio.sleep(60)

        cluster.without_leader = set()
        await trio.sleep(1)
        for _ in range(4):
            producer.append_nowait(b"value")
            await trio.testing.wait_all_tasks_blocked()

        assert [len(leader.unanswered) for leader in cluster.leaders] == [2, 2]


@pytest.mark.parametrize("is_refused", [True, False])
@in_virtual_time
async def test_what_could_go_elsewhere_does_not_join_what_waits_for_a_lost_leader(
    is_refused: bool,
) -> None:
    """Which is refused, or only silent."""
    async with opened(2) as (cluster, producer):
        for _ in range(4):
            producer.append_nowait(b"value")
            await trio.testing.wait_all_tasks_blocked()
        joins = producer.append_nowait(b"value")
        lost = cluster.leaders[producer._choice.of(None, None).number]
        (other,) = [leader for leader in cluster.leaders if leader is not lost]
        assert [len(leader.unanswered) for leader in cluster.leaders] == [2, 2]

        other.answers_at_once = True
        other.flush()
        if is_refused:
            cluster.without_leader = {GroupId(1 + cluster.leaders.index(lost))}
            lost.refuse(NotLeaderError("stepped down"))
            lost.refuse(NotLeaderError("stepped down"))
        else:
            await trio.sleep(1.1)

        stays = producer.append_nowait(b"value", partition=cluster.leaders.index(lost))
        assert cluster.leaders[(await producer.append_nowait(b"value")).partition] is other
        for _ in range(4):
            assert cluster.leaders[(await producer.append(b"value")).partition] is other
        assert not joins.is_done
        assert not stays.is_done


@in_virtual_time
async def test_a_partition_that_never_had_a_leader_gets_nothing_that_could_go_elsewhere() -> None:
    async with opened(2, delivery_timeout_ms=1_000) as (cluster, producer):
        cluster.without_leader = {GroupId(1)}
        cluster.leaders[1].answers_at_once = True
        with pytest.raises(DeliveryTimeoutError):
            await producer.append(b"value", partition=0)

        for _ in range(4):
            assert (await producer.append(b"value")).partition == 1
        cluster.without_leader = set()
        await trio.sleep(1)
        cluster.leaders[0].answers_at_once = True

        assert {(await producer.append(b"value")).partition for _ in range(4)} == {0, 1}


@in_virtual_time
async def test_who_enqueues_waits_for_room_but_not_for_the_acknowledgement() -> None:
    async with opened(buffer_bytes=BATCH_BYTES_MAX) as (cluster, producer), task_group() as tasks:
        tickets: list[Ticket] = []

        async def enqueue() -> None:
            while len(tickets) < 5:
                tickets.append(await producer.enqueue(LARGE))

        tasks.start_soon(enqueue)
        await trio.testing.wait_all_tasks_blocked()
        assert len(tickets) == 4
        cluster.leaders[0].answer()
        await trio.testing.wait_all_tasks_blocked()

        assert len(tickets) == 5
        assert [ticket.is_done for ticket in tickets] == [True, False, False, False, False]
        first = tickets[0].outcome()
        assert isinstance(first, Ack)
        assert first.offset == (await tickets[0]).offset == 0
        assert tickets[1].outcome() is None


@pytest.mark.parametrize("how", ["append", "append_many", "enqueue"])
@in_virtual_time
async def test_records_for_a_partition_without_a_leader_leave_room_for_those_of_others(
    how: str,
) -> None:
    async with opened(2, buffer_bytes=BATCH_BYTES_MAX) as (cluster, producer):
        cluster.without_leader = {GroupId(1)}
        cluster.leaders[1].answers_at_once = True

        async def append(partition: int) -> None:
            if how == "append_many":
                await producer.append_many([LARGE], key=KEY_OF[partition])
            elif how == "append":
                await producer.append(LARGE, key=KEY_OF[partition])
            else:
                await (await producer.enqueue(LARGE, partition=partition))

        async with task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(append, 0)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1):
                for _ in range(8):
                    await append(1)
            with pytest.raises(WouldBlock, match="for partition 0: the buffer holds"):
                producer.append_nowait(LARGE, partition=0)
            assert await producer.append_nowait(LARGE, partition=1)

            cluster.without_leader = set()
            cluster.leaders[0].answers_at_once = True
            with trio.fail_after(10):
                while cluster.leaders[0].end_offset < 8:
                    await trio.sleep(0.1)


@in_virtual_time
async def test_of_many_with_keys_those_go_first_whose_partition_has_a_leader() -> None:
    async with opened(2, buffer_bytes=BATCH_BYTES_MAX) as (cluster, producer):
        cluster.without_leader = {GroupId(1)}
        cluster.leaders[1].answers_at_once = True
        waits = producer.append_nowait(b"value", partition=0)
        await trio.testing.wait_all_tasks_blocked()

        async with task_group() as tasks:
            keys = [KEY_OF[0]] * 8 + [KEY_OF[1]]
            tasks.start_soon(partial(producer.append_many, [LARGE] * 9, keys=keys))
            await trio.testing.wait_all_tasks_blocked()
            assert cluster.leaders[1].end_offset == 1
            tasks.cancel_scope.cancel()
        assert not waits.is_done


# --- what fails in part -----------------------------------------------------------------


@in_virtual_time
async def test_a_flush_tells_of_each_failure_that_nobody_has_heard_of() -> None:
    """Although the first that failed was heard of, after the other had failed too."""
    async with opened(2, delivery_timeout_ms=1_000) as (cluster, producer):
        cluster.without_leader = {GroupId(1), GroupId(2)}
        heard, _ = (producer.append_nowait(b"value", partition=number) for number in (0, 1))
        await trio.sleep(2)
        with pytest.raises(DeliveryTimeoutError):
            await heard

        with pytest.raises(DeliveryTimeoutError):
            await producer.flush()
        await producer.flush()


@in_virtual_time
async def test_who_stopped_waiting_for_a_record_has_not_heard_of_its_failure() -> None:
    async with opened() as (cluster, producer):
        ticket = producer.append_nowait(b"value")
        with trio.move_on_after(1):
            await ticket
        cluster.leaders[0].refuse(FencedError("an older token"))

        with pytest.raises(FencedError):
            await producer.flush()


@in_virtual_time
async def test_who_still_waits_for_a_record_hears_of_it_although_another_stopped() -> None:
    async with opened() as (cluster, producer), task_group() as tasks:
        for _ in range(20):  # In this order and in the other.
            ticket = producer.append_nowait(b"value")
            impatient = trio.CancelScope()

            async def wait(ticket: Ticket = ticket) -> None:
                with pytest.raises(FencedError):
                    await ticket

            async def stop_waiting(
                ticket: Ticket = ticket, impatient: trio.CancelScope = impatient
            ) -> None:
                with impatient:
                    await ticket

            tasks.start_soon(wait)
            tasks.start_soon(stop_waiting)
            await trio.testing.wait_all_tasks_blocked()
            impatient.cancel()
            cluster.leaders[0].refuse(FencedError("an older token"))
            await trio.testing.wait_all_tasks_blocked()

            await producer.flush()


@in_virtual_time
async def test_a_flush_tells_of_what_was_given_up_because_the_client_was_closed() -> None:
    async with opened() as (cluster, producer):
        producer.append_nowait(b"value")
        await trio.testing.wait_all_tasks_blocked()
        cluster.close()

        with pytest.raises(UsageError, match="closed before the record was acknowledged"):
            await producer.aclose()


@in_virtual_time
async def test_who_asked_for_a_new_partition_of_a_producer_that_ended_meanwhile_is_told() -> None:
    async with opened() as (cluster, producer):

        async def append() -> None:
            with pytest.raises(UsageError, match="the producer is closed"):
                await producer.append(b"value", partition=1)

        cluster.leaders.append(Leader())
        cluster.topic_is_told = trio.Event()
        with trio.fail_after(2 * DELIVERY_TIMEOUT_MS_DEFAULT / 1000):
            async with task_group() as tasks:
                tasks.start_soon(append)
                await trio.testing.wait_all_tasks_blocked()
                cluster.close()
                cluster.topic_is_told.set()


LARGE = bytes(BATCH_BYTES_DEFAULT - KIB)
KEY_OF = {partition_for_key(key, 2): key for key in (b"a", b"b", b"c", b"d")}
KEYS = [b"a", b"b", b"c", b"d", b"e", b"f"]


@pytest.mark.parametrize("keys", [None, KEYS])
@in_virtual_time
async def test_of_many_that_wait_for_room_when_the_producer_ends_each_has_its_own_fate(
    keys: list[bytes] | None,
) -> None:
    """A plain error would say that nothing was appended, and would lose what was acknowledged."""
    async with opened(buffer_bytes=BATCH_BYTES_MAX) as (cluster, producer):
        outcome: list[PartialAppendError] = []

        async def append() -> None:
            with pytest.raises(PartialAppendError) as caught:
                await producer.append_many([LARGE] * len(KEYS), keys=keys)
            outcome.append(caught.value)

        async with task_group() as tasks:
            tasks.start_soon(append)
            await trio.testing.wait_all_tasks_blocked()
            assert len(cluster.leaders[0].unanswered) == 4
            cluster.leaders[0].answer()
            cluster.close()

        (error,) = outcome
        assert [(ack.base_offset, ack.count) for ack in cast("Any", error.acks)] == [(0, 1)]
        assert [(start, end, each.may_have_applied) for start, end, each in error.failures] == [
            (1, 2, True),
            (2, 3, True),
            (3, 4, True),
            (4, 5, False),
            (5, 6, False),
        ]
