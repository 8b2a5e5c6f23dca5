"""A producer before its records have left: what is refused, and what holds up whom."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any, cast

import pytest
import trio
import trio.testing

from logd.errors import (
    DeliveryTimeoutError,
    LogdError,
    NotLeaderError,
    PartialAppendError,
    UsageError,
)
from logd.limits import BATCH_BYTES_MAX, KIB
from logd.record.batch import TIMESTAMP_MS_MAX
from logd.types import GroupId, NodeId
from logd.wire.messages import (
    InitProducerResponse,
    PartitionInfo,
    ProduceRequest,
    ProduceResponse,
    TopicInfo,
)
from logd_client.background import Background, task_group
from logd_client.cluster import ClusterView
from logd_client.connection import Answer, Completion, Connection, Lane
from logd_client.environment import Environment
from logd_client.producer import BATCH_BYTES_DEFAULT, Producer, ProducerOptions
from logd_client.routing import Routing
from logd_client.transport import TcpTransport

TOPIC = "orders"


class Leader:
    """The far end of a connection: it has what it was sent, and answers when it is told to."""

    node = NodeId(1)
    name = "node 1"
    is_open = True

    def __init__(self) -> None:
        self.unanswered: list[tuple[ProduceRequest, Completion]] = []
        self.end_offset = 0

    def enqueue(self, message: ProduceRequest, on_done: Completion, body: bytes) -> None:
        self.unanswered.append((message, on_done))

    def flush(self) -> None:
        """Nothing is held back."""

    def refuse(self, error: LogdError) -> None:
        """Refuse what has waited longest."""
        _, on_done = self.unanswered.pop(0)
        on_done(error)

    def answer(self) -> None:
        """Acknowledge what has waited longest."""
        _, on_done = self.unanswered.pop(0)
        response = ProduceResponse(
            base_offset=self.end_offset, end_offset=self.end_offset + 1, append_time_ms=5
        )
        self.end_offset += 1
        on_done(Answer(response, b""))


class Cluster:
    """What producers use of ``Routing``."""

    def __init__(self, tasks: Background, partition_count: int) -> None:
        self.leaders = [Leader() for _ in range(partition_count)]
        self.view = ClusterView()
        self.tasks = tasks
        self.environment = Environment(TcpTransport(), self._clock, lambda: 1_000, random.Random(0))
        self.clock_reads_left = 1_000
        self.leader_is_known = trio.Event()
        self.leader_is_known.set()
        self.without_leader: set[GroupId] = set()
        self.request_timeout_s = 30.0
        self.on_close: dict[object, Callable[[], None]] = {}
        self.on_learnt: dict[object, Callable[[], None]] = {}
        self.controller_connection = None

    async def topic(self, name: str, *, as_it_is_now: bool) -> TopicInfo:
        partitions = [
            PartitionInfo(partition=number, group=number + 1, replicas=[1])
            for number in range(len(self.leaders))
        ]
        return TopicInfo(name=name, topic_id=1, partitions=partitions)

    async def call(self, *_: object) -> InitProducerResponse:
        return InitProducerResponse(producer_id=7)

    async def leader_connection(self, group: GroupId, lane: Lane, attempt: int) -> Connection:
        await self.leader_is_known.wait()
        if group in self.without_leader:
            raise NotLeaderError("no leader is known")
        return cast("Connection", self.leaders[group - 1])

    def check_open(self) -> None:
        """It is."""

    def close(self) -> None:
        """As the client does when it is closed."""
        for close in list(self.on_close.values()):
            close()

    def _clock(self) -> float:
        self.clock_reads_left -= 1
        assert self.clock_reads_left, "somebody looks at the clock again and again"
        return trio.current_time()

    async def look_again(self, *_: object) -> None:
        """Nothing has changed."""


@asynccontextmanager
async def opened(
    partition_count: int = 1, **options: Any
) -> AsyncIterator[tuple[Cluster, Producer]]:
    """A producer that is given up at the end."""
    async with task_group() as tasks:
        background = Background(tasks)
        cluster = Cluster(background, partition_count)
        producer = Producer(cast("Routing", cluster), TOPIC, ProducerOptions(**options))
        try:
            await producer.__aenter__()
            yield cluster, producer
        finally:
            cluster.close()
            background.close()


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(**arguments: object) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(partial(test, **arguments), clock=clock)

    return run


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


# --- what fails in part -----------------------------------------------------------------

LARGE = bytes(BATCH_BYTES_DEFAULT - KIB)
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
