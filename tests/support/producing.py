"""A producer, and leaders that answer when they are told to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any, cast

import trio
import trio.testing

from logd.errors import ConnectionLostError, LogdError, NotLeaderError
from logd.record.header import Codec, decode_header
from logd.record.timestamps import TimestampRuns
from logd.types import GroupId, NodeId, ProducerId
from logd.wire.messages import (
    InitProducerResponse,
    PartitionInfo,
    ProduceRequest,
    ProduceResponse,
    TopicInfo,
)
from logd_client.accumulator import OpenBatch
from logd_client.background import Background, task_group
from logd_client.backoff import Backoff
from logd_client.budget import Share
from logd_client.cluster import ClusterView
from logd_client.connection import Answer, Completion, Connection, Lane
from logd_client.delivery import Delivery
from logd_client.environment import Environment
from logd_client.pipeline import Pipeline
from logd_client.producer import Producer, ProducerOptions
from logd_client.routing import Routing
from logd_client.sender import ProducerPartition
from logd_client.transport import TcpTransport

TOPIC = "orders"


class Leader:
    """The far end of a connection: it has what it was sent, and answers when it is told to."""

    is_open = True

    def __init__(self, node: int = 1) -> None:
        self.node = NodeId(node)
        self.name = f"node {node}"
        self.requests: list[ProduceRequest] = []
        self.unanswered: list[tuple[Completion, int]] = []
        """And how many records each has."""
        self.end_offset = 0
        self.answers_at_once = False

    def enqueue(self, message: ProduceRequest, on_done: Completion, body: bytes) -> None:
        self.requests.append(message)
        self.unanswered.append((on_done, decode_header(body).record_count))

    def flush(self) -> None:
        """Nothing is held back."""
        while self.answers_at_once and self.unanswered:
            self.answer()

    def refuse(self, error: LogdError) -> None:
        """Refuse what has waited longest."""
        on_done, _ = self.unanswered.pop(0)
        on_done(error)

    def fail_if_silent_since(self, time: float, error: LogdError) -> None:
        """It has been silent all along."""
        self.is_open = False
        while self.unanswered:
            self.refuse(ConnectionLostError(str(error)))

    def answer(self) -> None:
        """Acknowledge what has waited longest."""
        on_done, count = self.unanswered.pop(0)
        base, self.end_offset = self.end_offset, self.end_offset + count
        response = ProduceResponse(base_offset=base, end_offset=self.end_offset, append_time_ms=5)
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
        self.topic_is_told = trio.Event()
        self.topic_is_told.set()
        self.without_leader: set[GroupId] = set()
        self.attempts: list[float] = []
        """When somebody looked for the leader of a partition."""
        self.refreshes: list[float] = []
        """When somebody asked who leads what."""
        self.on_refresh: Callable[[], None] = lambda: None
        self.looks: list[int] = []
        """After how many failures somebody looked again for a leader."""
        self.on_look: Callable[[], None] = lambda: None
        self.request_timeout_s = 30.0
        self.on_close: dict[object, Callable[[], None]] = {}
        self.on_learnt: dict[object, Callable[[], None]] = {}

    async def topic(self, name: str, *, as_it_is_now: bool) -> TopicInfo:
        partitions = [
            PartitionInfo(partition=number, group=number + 1, replicas=[1])
            for number in range(len(self.leaders))
        ]
        return TopicInfo(name=name, topic_id=1, partitions=partitions)

    async def describe_topic(self, name: str) -> TopicInfo:
        """The partitions that there are now: known at once, told when that is allowed."""
        topic = await self.topic(name, as_it_is_now=True)
        self.view.learn_topic(topic)
        for look in list(self.on_learnt.values()):
            look()
        await self.topic_is_told.wait()
        return topic

    async def call_controller(self, *_: object) -> InitProducerResponse:
        return InitProducerResponse(producer_id=7)

    async def leader_connection(self, group: GroupId, lane: Lane, attempt: int) -> Connection:
        self.attempts.append(trio.current_time())
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

    async def look_again(
        self, topic: str, group: GroupId, failures: int, suspect: NodeId | None
    ) -> None:
        self.looks.append(failures)
        self.on_look()

    async def refresh(self, suspect: NodeId) -> None:
        self.refreshes.append(trio.current_time())
        self.on_refresh()


def in_virtual_time(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run ``test`` under trio, on time that passes only when nothing else is left to do."""

    @wraps(test)
    def run(**arguments: object) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(partial(test, **arguments), clock=clock)

    return run


def unattached(count: int) -> list[ProducerPartition]:
    """Partitions of a producer, whose batches nobody sends."""
    return [
        ProducerPartition(
            number,
            GroupId(number + 1),
            Pipeline(
                producer_id=ProducerId(7),
                codec=Codec.NONE,
                linger_s=0,
                batches_in_flight=8,
                on_settled=lambda _: None,
                on_failed=lambda _: None,
            ),
            Share(),
            Backoff(random.Random(0)),
        )
        for number in range(count)
    ]


def grow(partition: ProducerPartition) -> None:
    """Let it have a batch that others may join."""
    partition.pipeline.enqueue(
        OpenBatch(
            Delivery(TOPIC, partition.number),
            opened_at=0,
            deadline=100,
            values=[b"value"],
            keys=None,
            timestamps=TimestampRuns(0),
        )
    )


@asynccontextmanager
async def opened(
    partition_count: int = 1, **options: Any
) -> AsyncIterator[tuple[Cluster, Producer]]:
    """A producer that is given up at the end."""
    async with made(partition_count, **options) as (cluster, producer):
        await producer.__aenter__()
        yield cluster, producer


@asynccontextmanager
async def made(partition_count: int = 1, **options: Any) -> AsyncIterator[tuple[Cluster, Producer]]:
    """The same, before it is opened."""
    async with task_group() as tasks:
        background = Background(tasks)
        cluster = Cluster(background, partition_count)
        producer = Producer(cast("Routing", cluster), TOPIC, ProducerOptions(**options))
        try:
            yield cluster, producer
        finally:
            cluster.close()
            background.close()
