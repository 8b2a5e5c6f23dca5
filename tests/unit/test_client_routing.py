"""What a client knows of a topic, when somebody else has changed it since."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from logd.errors import (
    ConnectionFailedError,
    ConnectionLostError,
    InvalidPartitionError,
    LogdError,
    NotLeaderError,
    ProtocolError,
    RebalanceConflictError,
    UnavailableError,
    UnknownTopicError,
    UsageError,
)
from logd.types import GroupId, HostPort, NodeId
from logd.wire.messages import (
    BrokerInfo,
    MetadataRequest,
    MetadataResponse,
    PartitionInfo,
    TopicInfo,
)
from logd_client.admin import Admin
from logd_client.background import Background, task_group
from logd_client.cluster import ClusterView
from logd_client.connection import Connection
from logd_client.consumer import Consumer
from logd_client.consumer_options import ConsumerOptions
from logd_client.environment import Environment, wall_clock_ms
from logd_client.producer import Producer, ProducerOptions
from logd_client.routing import READ_TIMEOUT_S, Effect, Routing
from logd_client.transport import TcpTransport

pytestmark = pytest.mark.anyio

GUARD_S = 5.0


class Unconnected(Routing):
    """That of a client which has met nobody."""

    def __init__(self, tasks: Background, request_timeout_s: float = 30) -> None:
        super().__init__(
            [HostPort("127.0.0.1", 1)],
            Environment(TcpTransport(), anyio.current_time, wall_clock_ms, random.Random(1)),
            tasks,
            client_id="test",
            connect_timeout_s=1,
            request_timeout_s=request_timeout_s,
        )


class Told(Unconnected):
    """The routing of a client whose questions are answered with what the cluster has now."""

    def __init__(self, tasks: Background) -> None:
        super().__init__(tasks)
        self.topics: list[TopicInfo] = []
        self.is_closed_while_asked = False
        self.controllers: list[int | None] = [1]
        """As the answers say it, one after the other; the last one stays."""
        self.on_asked: Callable[[], None] = lambda: None

    async def call(self, target: object, message: Any, *_: object, **__: object) -> Any:
        assert isinstance(message, MetadataRequest)
        assert message.topics is not None
        if self.is_closed_while_asked:
            self.close()
        self.on_asked()
        found = [topic for topic in self.topics if topic.name in message.topics]
        controller, *later = self.controllers
        self.controllers = later or self.controllers
        return MetadataResponse(
            cluster_id="c",
            controller=controller,
            brokers=[],
            topics=found,
            unknown=[] if found else message.topics,
        )

    async def leader_connection(self, *_: object) -> Connection:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")


def topic(partition_count: int, *, topic_id: int = 1) -> TopicInfo:
    partitions = [
        PartitionInfo(partition=number, group=100 * topic_id + number, replicas=[1])
        for number in range(partition_count)
    ]
    return TopicInfo(name="t", topic_id=topic_id, partitions=partitions)


@asynccontextmanager
async def routing(
    then: TopicInfo, now: TopicInfo | None, kind: type[Told] = Told
) -> AsyncIterator[Told]:
    """Of a client that has used the topic as it was ``then``."""
    async with anyio.create_task_group() as tasks:
        background = Background(tasks)
        told = kind(background)
        told.topics = [then]
        await told.topic("t")
        told.topics = [] if now is None else [now]
        try:
            yield told
        finally:
            told.close()
            background.close()


@pytest.mark.parametrize("other", [None, "second"])
def test_the_first_cluster_that_a_broker_names_is_the_client_s(other: str | None) -> None:
    view = ClusterView()
    for cluster_id in (None, "first", "first"):
        view.meet("broker:1", cluster_id)

    with pytest.raises(ProtocolError, match="broker:1 belongs to"):
        view.meet("broker:1", other)
    assert view.cluster_id == "first"


async def test_a_consumer_reads_the_partitions_that_were_added_before_it_was_opened(
    anyio_backend: object,
) -> None:
    async with (
        routing(topic(1), topic(3)) as told,
        Consumer(told, "t", ConsumerOptions(start="earliest")) as consumer,
    ):
        assert [consumer.position(number) for number in range(3)] == [None] * 3


async def test_a_producer_spreads_records_as_every_other_that_is_opened_now(
    anyio_backend: object,
) -> None:
    async with routing(topic(1), topic(3)) as told:
        producer = Producer(told, "t", ProducerOptions(idempotent=False))
        await producer.__aenter__()

        producer.append_nowait(b"value", partition=2)


async def test_a_topic_that_was_made_anew_is_read_and_not_the_one_before(
    anyio_backend: object,
) -> None:
    async with (
        routing(topic(1), topic(1, topic_id=2)) as told,
        Consumer(told, "t", ConsumerOptions(start="earliest")),
    ):
        assert [partition.group for partition in (await told.topic("t")).partitions] == [200]


async def test_a_topic_that_was_deleted_is_not_opened(anyio_backend: object) -> None:
    async with routing(topic(1), None) as told:
        with pytest.raises(UnknownTopicError):
            await Consumer(told, "t", ConsumerOptions(start="earliest")).__aenter__()


async def test_a_partition_is_not_refused_before_the_cluster_was_asked(
    anyio_backend: object,
) -> None:
    async with routing(topic(1), topic(3)) as told:
        assert (await told.partition("t", 2)).group == 102
        with pytest.raises(InvalidPartitionError, match="expected 0 to 2"):
            await told.partition("t", 3)


@pytest.mark.parametrize(
    "made",
    [
        lambda told: Producer(told, "t", ProducerOptions(idempotent=False)),
        lambda told: Consumer(told, "t", ConsumerOptions(start="earliest")),
    ],
)
async def test_what_was_asked_for_when_the_client_was_closed_is_not_opened(
    made: Callable[[Routing], Producer | Consumer], anyio_backend: object
) -> None:
    """Nobody would close it any more, and what waits for it would wait for ever."""
    async with routing(topic(1), topic(1)) as told:
        told.is_closed_while_asked = True

        with pytest.raises(UsageError, match="the client is closed"):
            await made(told).__aenter__()


async def test_a_consumer_that_is_closed_while_it_looks_for_its_position_says_so_at_once(
    anyio_backend: object,
) -> None:
    async with routing(topic(1), topic(1)) as told:
        told.request_timeout_s = math.inf

        async def open_it() -> None:
            with pytest.raises(UsageError, match="the consumer was closed"):
                await Consumer(told, "t", ConsumerOptions(start="latest")).__aenter__()

        with anyio.fail_after(GUARD_S):
            async with task_group() as tasks:
                tasks.start_soon(open_it)
                await anyio.wait_all_tasks_blocked()
                told.close()


async def test_a_consumer_whose_position_nobody_waits_for_any_more_leaves_nothing_behind(
    anyio_backend: object,
) -> None:
    async with routing(topic(1), topic(1)) as told:
        consumer = Consumer(told, "t", ConsumerOptions(start="latest"))
        with anyio.move_on_after(0.01):
            await consumer.__aenter__()

        assert not consumer.is_open
        assert (told.on_close, told.on_learnt) == ({}, {})


@pytest.mark.parametrize(
    ("known", "told_of"),
    [
        pytest.param(None, [None, None, 1, 1], id="a broker that has just started was asked"),
        pytest.param(NodeId(1), [1, None, 1], id="another was, in its place"),
    ],
)
async def test_a_topic_is_unknown_only_if_a_controller_has_been_asked(
    anyio_backend: object, known: NodeId | None, told_of: list[int | None]
) -> None:
    """Others may know of few topics yet."""
    async with routing(topic(1), None) as told:
        told.view.controller = known
        told.controllers = told_of
        needed, asked = len(told_of), 0

        def answer() -> None:
            nonlocal asked
            asked += 1
            if asked == needed:
                told.topics = [topic(1)]

        told.on_asked = answer
        found = await told.describe_topic("t")

        assert found == topic(1)
        assert asked == needed


async def test_without_a_controller_nobody_says_that_there_is_no_such_topic(
    anyio_backend: object,
) -> None:
    async with routing(topic(1), None) as told:
        told.view.controller = None
        told.controllers = [None]
        told.request_timeout_s = 0.1

        with pytest.raises(UnavailableError, match="'t' knows only the controller"):
            await told.describe_topic("t")


class Behind(Told):
    """Its client is told who leads by a broker that knows no topic."""

    async def refresh(self, suspect: NodeId | None = None) -> None:
        self.view.learn(
            MetadataResponse(cluster_id="c", controller=1, brokers=[], topics=[], unknown=["t"])
        )


@pytest.mark.parametrize("now", [None, topic(1, topic_id=2)], ids=["deleted", "created again"])
async def test_the_first_who_does_not_know_a_topic_has_the_controller_asked_whether_it_was_deleted(
    anyio_backend: object, now: TopicInfo | None
) -> None:
    async with routing(topic(1), now, Behind) as told:
        with pytest.raises(UnknownTopicError):
            await told.look_again("t", GroupId(100), failures=1)


async def test_a_topic_that_somebody_does_not_know_yet_was_not_deleted(
    anyio_backend: object,
) -> None:
    async with routing(topic(1), topic(1), Behind) as told:
        await told.look_again("t", GroupId(100), failures=1)


class Cut(Unconnected):
    """The routing of a client that has lost touch with all brokers but one."""

    def __init__(self, tasks: Background, *, request_timeout_s: float = 1) -> None:
        super().__init__(tasks, request_timeout_s)

    async def refresh(self, suspect: NodeId | None = None) -> None:
        await anyio.sleep_forever()


async def test_a_request_is_over_in_time_whoever_else_says_nothing_and_tells_what_was_answered(
    anyio_backend: object,
) -> None:
    async def refused(_: int) -> Connection:
        raise NotLeaderError("no leader is known")

    async with anyio.create_task_group() as tasks:
        routing = Cut(Background(tasks), request_timeout_s=0.2)

        with anyio.fail_after(GUARD_S), pytest.raises(NotLeaderError):
            await routing.call(refused, MetadataRequest(), MetadataResponse)


async def test_a_request_is_over_in_time_while_it_is_connecting(anyio_backend: object) -> None:
    async def silent(_: int) -> Connection:
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async with anyio.create_task_group() as tasks:
        routing = Cut(Background(tasks), request_timeout_s=0.05)

        with (
            anyio.fail_after(GUARD_S),
            pytest.raises(ConnectionFailedError, match=r"not connected within 0\.05 s"),
        ):
            await routing.call(silent, MetadataRequest(), MetadataResponse)


class Unhelpful(Cut):
    """Nobody tells anything new."""

    async def refresh(self, suspect: NodeId | None = None) -> None:
        await anyio.lowlevel.checkpoint()


async def test_who_is_connecting_when_time_is_over_is_told_what_was_met_before(
    anyio_backend: object,
) -> None:
    async def of_another_cluster_then_silent(failures: int) -> Connection:
        if not failures:
            raise ProtocolError("it belongs to another cluster")
        await anyio.sleep_forever()
        raise AssertionError("unreachable")

    async with anyio.create_task_group() as tasks:
        routing = Unhelpful(Background(tasks), request_timeout_s=0.3)

        with anyio.fail_after(GUARD_S), pytest.raises(ProtocolError, match="another cluster"):
            await routing.call(of_another_cluster_then_silent, MetadataRequest(), MetadataResponse)


class Named:
    """As much of a connection as is needed to tell who was asked."""

    is_open = True

    def __init__(self, node: int) -> None:
        self.node = NodeId(node)

    def close(self) -> None:
        pass


class Standing(Unconnected):
    """The routing of a client whose brokers know of a controller, or do not."""

    def __init__(self, tasks: Background, led: set[int]) -> None:
        super().__init__(tasks, request_timeout_s=1)
        self.led = led
        self.asked: list[int] = []

    def meet(self, node: int) -> None:
        self.view.learn(self.answer(node))

    def answer(self, node: int) -> MetadataResponse:
        return MetadataResponse(
            cluster_id="c",
            controller=2 if node in self.led else None,
            brokers=[BrokerInfo(node_id=node, host="h", port=1) for node in (1, 2, 3)],
            topics=[],
        )

    async def connection(self, node: NodeId, *_: object, **__: object) -> Any:
        return Named(node)

    async def call(self, target: Any, *_: object, **__: object) -> Any:
        asked = (await target(0)).node
        self.asked.append(asked)
        return self.answer(asked)


async def test_a_broker_that_knows_of_no_controller_is_asked_again_after_all_others(
    anyio_backend: object,
) -> None:
    async with anyio.create_task_group() as tasks:
        routing = Standing(Background(tasks), led={2})
        routing.meet(1)

        for _ in range(4):
            await routing.describe(None)
        assert routing.asked == [1, 2, 2, 2]
        routing.led = {3}
        for _ in range(4):
            await routing.describe(None)

    assert routing.asked[4:] == [2, 3, 3, 3]


async def test_without_any_controller_all_brokers_are_asked_in_turn(
    anyio_backend: object,
) -> None:
    async with anyio.create_task_group() as tasks:
        routing = Standing(Background(tasks), led=set())
        routing.meet(1)

        for _ in range(6):
            await routing.describe(None)

    assert routing.asked == [1, 2, 3, 1, 2, 3]


async def test_while_it_cannot_be_told_where_the_controller_is_any_broker_is_asked(
    anyio_backend: object,
) -> None:
    """It leads, and is not registered yet: the cluster has just been formed."""
    async with anyio.create_task_group() as tasks:
        routing = Standing(Background(tasks), led={1})
        answer = routing.answer(1)
        routing.view.learn(
            msgspec.structs.replace(answer, brokers=[b for b in answer.brokers if b.node_id != 2])
        )

        asked = await routing.controller_connection(0)

    assert asked.node in (1, 3)


class Refusing(Unconnected):
    """The routing of a client that meets one failure after the other, and then an answer."""

    def __init__(self, tasks: Background, *failures: LogdError) -> None:
        super().__init__(tasks)
        self.failures = list(failures)
        self.timeouts_s: list[float] = []
        """Of each attempt."""
        self.refreshes: list[NodeId | None] = []
        """Whom each look for a leader suspected."""
        self.node = NodeId(1)

    async def target(self, attempt: int) -> Any:
        return self

    async def request(self, message: object, expected: object, timeout_s: float) -> str:
        self.timeouts_s.append(timeout_s)
        if self.failures:
            raise self.failures.pop(0)
        return "answer"

    async def refresh(self, suspect: NodeId | None = None) -> None:
        self.refreshes.append(suspect)

    async def controller_connection(self, attempt: int) -> Any:
        return self

    async def ask(self, effect: Effect = "none") -> Any:
        return await self.call(self.target, MetadataRequest(), MetadataResponse, effect=effect)


@asynccontextmanager
async def refusing(*failures: LogdError) -> AsyncIterator[Refusing]:
    async with anyio.create_task_group() as tasks:
        yield Refusing(Background(tasks), *failures)


async def test_who_is_told_where_to_go_goes_there_at_once_but_not_again_and_again(
    anyio_backend: object,
) -> None:
    moved = [NotLeaderError("moved", leader=2) for _ in range(2)]
    async with refusing(moved[0]) as routing:
        assert await routing.ask() == "answer"
        assert routing.refreshes == []

    async with refusing(*moved) as routing:
        assert await routing.ask() == "answer"
        assert routing.refreshes == [1]


async def test_who_is_refused_without_a_hint_looks_for_the_leader_before_the_next_attempt(
    anyio_backend: object,
) -> None:
    async with refusing(NotLeaderError("no"), UnavailableError("not now")) as routing:
        assert await routing.ask() == "answer"

        assert routing.refreshes == [1, 1]
        assert len(routing.timeouts_s) == 3


async def test_what_may_have_taken_effect_is_repeated_only_if_it_changes_nothing(
    anyio_backend: object,
) -> None:
    async with refusing(ConnectionLostError("reset")) as routing:
        assert await routing.ask() == "answer"

    async with refusing(ConnectionLostError("reset")) as routing:
        with pytest.raises(ConnectionLostError) as caught:
            await routing.ask("once")
        assert caught.value.may_have_applied
        assert len(routing.timeouts_s) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda admin: admin.set_rebalancing(concurrency=1),
        lambda admin: admin.alter_broker(1, "drain"),
        lambda admin: admin.start_plan("even", 1, []),
        lambda admin: admin.cancel_plan(1),
        lambda admin: admin.cancel_move(1, 1),
        lambda admin: admin.raise_feature_level(),
    ],
)
async def test_a_change_that_is_repeated_and_refused_may_have_been_made_the_first_time(
    change: Callable[[Admin], Awaitable[object]], anyio_backend: object
) -> None:
    refusal = RebalanceConflictError("another plan runs")
    async with refusing(ConnectionLostError("reset"), refusal) as routing:
        with pytest.raises(RebalanceConflictError) as caught:
            await change(Admin(routing))

    assert caught.value.may_have_applied


async def test_a_change_that_was_only_refused_was_not_made(anyio_backend: object) -> None:
    async with refusing(RebalanceConflictError("another plan runs")) as routing:
        with pytest.raises(RebalanceConflictError) as caught:
            await Admin(routing).cancel_plan(1)

    assert not caught.value.may_have_applied


async def test_a_broker_that_alone_can_answer_is_given_as_long_as_its_caller_says(
    anyio_backend: object,
) -> None:
    class Silent(Refusing):
        async def connection(self, *_: object) -> Any:
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        admin = Admin(Silent(Background(tasks)))
        with anyio.fail_after(GUARD_S), pytest.raises(ConnectionFailedError, match=r"0\.05 s"):
            await admin.describe_broker(1, timeout_s=0.05)
        with pytest.raises(UsageError, match="timeout_s"):
            await admin.describe_broker(1, timeout_s=-1)


async def test_a_question_is_put_elsewhere_soon_while_a_change_is_given_all_its_time(
    anyio_backend: object,
) -> None:
    async with refusing() as routing:
        await routing.ask()
        await routing.ask("once")

        assert routing.timeouts_s == pytest.approx([READ_TIMEOUT_S, 30], abs=1)
