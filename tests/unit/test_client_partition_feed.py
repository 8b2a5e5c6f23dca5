"""One partition of a consumer, whose replicas are damaged or gone."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import trio
import trio.testing

from logd.errors import (
    ConnectionFailedError,
    LogdError,
    ReplicaDamagedError,
    UnknownBrokerError,
)
from logd.types import GroupId, NodeId, Offset
from logd.wire.messages import (
    Deliver,
    OffsetsResponse,
    PartitionInfo,
    SubscribeRequest,
    SubscribeResponse,
    SubscriptionEnded,
    TopicInfo,
)
from logd_client.background import Background, task_group
from logd_client.cluster import ClusterView
from logd_client.connection import Answer, Completion
from logd_client.cursor import Cursor
from logd_client.environment import Environment
from logd_client.partition_feed import PartitionFeed
from logd_client.routing import Routing
from logd_client.transport import TcpTransport

GROUP = GroupId(5)
LEADER, DOWN, WHOLE = NodeId(1), NodeId(2), NodeId(3)
PATIENCE_S = 60.0


class Broker:
    """The far end of a connection: takes every subscription, and may find what it has damaged."""

    is_open = True

    def __init__(self, node: NodeId, *, is_damaged: bool, is_frozen: bool = False) -> None:
        self.node = node
        self._is_frozen = is_frozen
        self.name = f"node {node}"
        self._is_damaged = is_damaged
        self._sinks: dict[int, PartitionFeed] = {}

    def add_sink(self, subscription: int, sink: PartitionFeed) -> None:
        self._sinks[subscription] = sink

    def remove_sink(self, subscription: int) -> None:
        del self._sinks[subscription]

    def dismiss(self, message: object) -> None:
        """It pushes only what the test says."""

    def submit(self, message: Any, on_done: Completion) -> None:
        if not isinstance(message, SubscribeRequest) or self._is_frozen:
            return
        on_done(Answer(SubscribeResponse(position=7, log_start=0, commit_offset=9), b""))
        if self._is_damaged:
            ended = SubscriptionEnded(
                subscription=message.subscription,
                generation=message.generation,
                error=cast("Any", None),
            )
            self._sinks[message.subscription].on_ended(ended, ReplicaDamagedError("rotten"))

    async def request(self, *_: object) -> OffsetsResponse:
        await trio.lowlevel.checkpoint()
        return OffsetsResponse(log_start=0, commit_offset=7, data_end=7)

    def fail_if_silent_since(self, time: float, error: LogdError) -> None:
        """Nobody else uses it."""


class Cluster:
    """What feeds use of ``Routing``: a damaged leader, one replica that is down, a whole one."""

    def __init__(self, tasks: Background, found_down: type[LogdError]) -> None:
        self.tasks = tasks
        self._found_down = found_down
        self.environment = Environment(
            TcpTransport(), trio.current_time, lambda: 0, random.Random(0)
        )
        self.request_timeout_s = 30.0
        self.view = ClusterView()
        row = PartitionInfo(
            partition=0, group=GROUP, replicas=[LEADER, DOWN, WHOLE], leader=LEADER, term=1
        )
        self.view.learn_topic(TopicInfo(name="t", topic_id=1, partitions=[row]))
        self._subscriptions = 0

    def next_subscription(self) -> int:
        self._subscriptions += 1
        return self._subscriptions

    async def connection(self, node: NodeId, *_: object) -> Broker:
        if node == DOWN:
            raise self._found_down("down")
        return Broker(node, is_damaged=node == LEADER)

    async def leader_connection(self, *_: object) -> Broker:
        return await self.connection(LEADER)

    async def look_again(self, *_: object) -> None:
        """Nothing has changed."""


class Reader:
    """The consumer."""

    is_open = True

    def on_arrival(self, feed: PartitionFeed) -> None:
        """Nothing is read here."""

    def on_change(self) -> None:
        """Nobody waits for it."""


def feed_of(cluster: Cluster) -> PartitionFeed:
    cursor = Cursor(
        topic="t",
        partition=0,
        group=GROUP,
        start=("offset", 7),
        credit_bytes=100,
        any_replica=False,
    )
    return PartitionFeed(Reader(), cast("Routing", cluster), cursor, None)


def test_a_broker_that_does_not_answer_a_subscription_is_soon_left_for_who_leads_now() -> None:
    """It froze, or its host did: its connection stays open, and says nothing."""

    class Moved(Cluster):
        asked = 0

        async def leader_connection(self, *_: object) -> Broker:
            self.asked += 1
            return Broker(WHOLE, is_damaged=False, is_frozen=self.asked == 1)

    async def main() -> None:
        async with task_group() as tasks:
            background = Background(tasks)
            cluster = Moved(background, ConnectionFailedError)
            feed = feed_of(cluster)
            feed.attach_soon()
            await trio.sleep(cluster.request_timeout_s / 3)
            assert feed.cursor.is_subscribed
            background.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("found_down", [ConnectionFailedError, UnknownBrokerError])
def test_the_damaged_range_is_sought_at_each_replica_in_turn(
    found_down: type[LogdError],
) -> None:
    """Not again and again at one that is down, or was removed, while another has it."""

    async def main() -> None:
        async with task_group() as tasks:
            background = Background(tasks)
            feed = feed_of(Cluster(background, found_down))

            feed.attach_soon()
            await trio.sleep(PATIENCE_S)
            background.close()

        assert feed.connection is not None
        assert feed.connection.node == WHOLE

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_damage_is_told_of_until_something_is_delivered() -> None:
    """A replica takes the subscription before it looks at what it has."""

    class Damaged(Cluster):
        is_damaged = True

        async def connection(self, node: NodeId, *_: object) -> Broker:
            return Broker(node, is_damaged=self.is_damaged)

    async def main() -> None:
        async with task_group() as tasks:
            background = Background(tasks)
            cluster = Damaged(background, ConnectionFailedError)
            feed = feed_of(cluster)
            feed.attach_soon()
            await trio.sleep(1)
            told = []
            for _ in range(100):
                told.append(feed.trouble)
                await trio.sleep(0.1)

            cluster.is_damaged = False
            await trio.sleep(PATIENCE_S)
            generation = feed.cursor.generation
            delivered = Deliver(
                subscription=1, generation=generation, next_offset=8, commit_offset=9
            )
            feed.on_delivered(delivered, b"a batch")
            told_then = feed.trouble
            background.close()
        assert all(isinstance(trouble, ReplicaDamagedError) for trouble in told)
        assert {str(trouble) for trouble in told} == {"t/0 is damaged from offset 7 on: rotten"}
        assert told_then is None

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_partition_that_is_at_its_stop_is_left_and_not_subscribed_again() -> None:
    class Intact(Cluster):
        async def leader_connection(self, *_: object) -> Broker:
            return await self.connection(WHOLE)

    async def main() -> None:
        async with task_group() as tasks:
            background = Background(tasks)
            feed = feed_of(Intact(background, ConnectionFailedError))
            feed.cursor.stop = Offset(7)
            for _ in range(2):
                feed.attach_soon()
                await trio.sleep(PATIENCE_S)
                assert (feed.cursor.generation, feed.connection) == (2, None)
            assert not feed.cursor.is_subscribed
            background.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_idle_partition_that_was_served_well_is_found_again_as_the_first_time() -> None:
    """Else a consumer that is open for weeks would look for each new leader as if it had failed to
    find one again and again, and ask the controller whether there is the topic still."""

    class Restarting(Cluster):
        def __init__(self, tasks: Background) -> None:
            super().__init__(tasks, ConnectionFailedError)
            self.failures: list[object] = []

        async def leader_connection(self, *_: object) -> Broker:
            return Broker(WHOLE, is_damaged=False)

        async def look_again(self, *asked: object) -> None:
            _, _, failures, _ = asked
            self.failures.append(failures)

    async def main() -> None:
        async with task_group() as tasks:
            background = Background(tasks)
            cluster = Restarting(background)
            feed = feed_of(cluster)
            feed.attach_soon()
            for _ in range(10):
                await trio.sleep(5)
                connection = feed.connection
                assert connection is not None
                await feed.probe(connection)
                feed.on_connection_lost(connection, ConnectionFailedError("it was restarted"))
            await trio.sleep(5)
            background.close()

        assert cluster.failures == [1] * 10

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
