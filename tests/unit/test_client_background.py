"""What a client does in the background outlives a cancelled scope around it, and ends with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread
import pytest

from logd.errors import UnknownBrokerError, UsageError
from logd.types import HostPort
from logd.wire.messages import BrokerInfo, MetadataResponse, PartitionInfo, TopicInfo
from logd_client import connect
from logd_client.background import Background, task_group
from logd_client.consumer import Consumer
from logd_client.consumer_options import ConsumerOptions
from logd_client.coordination.sessions import Sessions
from logd_client.environment import Environment, wall_clock_ms
from logd_client.producer import Producer, ProducerOptions
from logd_client.routing import Routing
from logd_client.transport import TcpTransport

pytestmark = pytest.mark.anyio


async def nobody(routing: Routing) -> None:
    """Nobody is there, and nobody is wanted."""


async def test_a_task_goes_on_while_the_scope_around_is_cancelled_until_it_is_closed(
    anyio_backend: object,
) -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            for number in range(3):
                await anyio.sleep(0)
                steps.append(f"step {number}")
            await anyio.sleep_forever()
        finally:
            steps.append("ended")

    with anyio.CancelScope() as around:
        async with anyio.create_task_group() as tasks:
            background = Background(tasks)
            background.start_soon(work)
            around.cancel()
            with anyio.CancelScope(shield=True):
                while len(steps) < 3:
                    await anyio.sleep(0)
            assert steps == ["step 0", "step 1", "step 2"]
            background.close()

    assert steps[-1] == "ended"


async def test_what_is_begun_after_the_end_is_not_begun(anyio_backend: object) -> None:
    async with anyio.create_task_group() as tasks:
        background = Background(tasks)
        background.close()

    background.start_soon(pytest.fail, "begun")


async def test_a_client_whose_closing_fails_ends_all_the_same(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when asyncio cancels the task that is closing it."""

    async def fail(sessions: Sessions) -> None:
        raise RuntimeError("cancelled")

    monkeypatch.setattr(Routing, "bootstrap", nobody)
    monkeypatch.setattr(Sessions, "aclose", fail)
    client = connect("127.0.0.1:1")
    with anyio.fail_after(10), pytest.raises(RuntimeError, match="cancelled"):
        async with client:
            client.lock("l")  # Makes sessions to be closed.

    with pytest.raises(UsageError, match="closed"):
        await client.admin.describe_cluster()


async def test_a_client_that_another_task_leaves_is_closed_and_that_one_told(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that entered it goes on, and may leave it, too."""
    monkeypatch.setattr(Routing, "bootstrap", nobody)
    client = connect("127.0.0.1:1")
    steps: list[str] = []
    is_left = anyio.Event()

    async def give_back(sessions: Sessions) -> None:
        steps.append("given back")

    monkeypatch.setattr(Sessions, "aclose", give_back)

    async def leave() -> None:
        with pytest.raises(UsageError, match="opened in another task"):
            await client.__aexit__(None, None, None)
        with pytest.raises(UsageError, match="the client is closed"):
            await client.admin.describe_cluster()
        is_left.set()

    async with task_group() as tasks, client:
        client.lock("l")  # Makes sessions to be closed.
        tasks.start_soon(leave)
        await is_left.wait()
        await anyio.sleep(0)
        steps.append("goes on")

    assert steps == ["given back", "goes on", "given back"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_is_left_as_usual_after_a_task_group_in_its_block_has_failed(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.13 a task that has got over that counts as cancelled ever after."""
    monkeypatch.setattr(Routing, "bootstrap", nobody)
    client = connect("127.0.0.1:1")

    async def fail() -> None:
        raise ValueError("no")

    async def use() -> str:
        async with client:
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(fail())
        return "left"

    assert await asyncio.create_task(use()) == "left"
    with pytest.raises(UsageError, match="the client is closed"):
        await client.admin.describe_cluster()


async def test_a_client_that_is_left_twice_stays_closed(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Routing, "bootstrap", nobody)
    client = connect("127.0.0.1:1")
    with pytest.raises(UsageError, match="not open"):
        await client.__aexit__(None, None, None)
    async with client:
        pass

    await client.__aexit__(None, None, None)

    with pytest.raises(UsageError, match="the client is closed"):
        await client.admin.describe_cluster()


@pytest.mark.parametrize("nested", [True, False])
async def test_what_the_body_of_a_client_raised_goes_on_as_it_was_raised(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    """Also the group of a body's own tasks, which is not put into another."""
    monkeypatch.setattr(Routing, "bootstrap", nobody)
    raised: Exception = ValueError("one")
    if nested:
        raised = ExceptionGroup("both", [raised, ExceptionGroup("other", [KeyError("two")])])
    with pytest.raises(type(raised)) as caught:
        async with connect("127.0.0.1:1"):
            raise raised

    assert caught.value is raised


async def test_a_broker_that_leaves_while_all_are_asked_is_passed_over(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for its address would wait for the very answer that is being sought."""

    async def meet(routing: Routing) -> None:
        broker = BrokerInfo(node_id=1, host="127.0.0.1", port=1)
        routing.view.learn(
            MetadataResponse(cluster_id="c", controller=None, brokers=[broker], topics=[])
        )

    monkeypatch.setattr(Routing, "bootstrap", meet)
    async with connect("127.0.0.1:1", connect_timeout_ms=1_000) as client:
        routing = client._open_routing()
        (ask_broker_1,) = routing._sources(None)
        routing.view.learn(
            MetadataResponse(
                cluster_id="c", controller=None, brokers=[], topics=[], metadata_offset=1
            )
        )

        async def ask() -> bool:
            return bool(await ask_broker_1())

        with pytest.raises(UnknownBrokerError, match="no broker 1"):
            await routing._who_leads.ask(ask)


class Told(Routing):
    """Has met no broker; somebody has told it of a topic."""

    async def topic(self, name: str, *, as_it_is_now: bool = False) -> TopicInfo:
        row = PartitionInfo(partition=0, group=1, replicas=[1])
        return TopicInfo(name=name, topic_id=1, partitions=[row])


async def open_both() -> tuple[Producer, Consumer]:
    routing = Told(
        [HostPort("127.0.0.1", 1)],
        Environment(TcpTransport(), anyio.current_time, wall_clock_ms, random.Random(1)),
        Background(await anyio.create_task_group().__aenter__()),
        client_id="test",
        connect_timeout_s=1,
        request_timeout_s=1,
    )
    producer = Producer(routing, "orders", ProducerOptions(idempotent=False))
    consumer = Consumer(routing, "orders", ConsumerOptions(start="earliest"))
    await producer.__aenter__()
    await consumer.__aenter__()
    await anyio.sleep(0)
    return producer, consumer


@pytest.mark.parametrize(
    "use",
    [
        lambda producer, _: producer.append(b"v"),
        lambda producer, _: producer.append_many([b"v"]),
        lambda producer, _: producer.append_nowait(b"v"),
        lambda _, consumer: consumer.next_record(),
        lambda _, consumer: consumer.next_batch(),
    ],
)
def test_what_outlives_its_event_loop_says_so_and_keeps_nobody_waiting(
    use: Callable[[Producer, Consumer], Awaitable[object]],
) -> None:
    async def use_one(producer: Producer, consumer: Consumer) -> None:
        with anyio.fail_after(5), pytest.raises(UsageError, match=r"the event loop .* has ended"):
            await use(producer, consumer)

    opened = asyncio.run(open_both())

    asyncio.run(use_one(*opened))


@pytest.mark.parametrize(
    "use", [lambda consumer: consumer.next_record(), lambda consumer: consumer.next_batch()]
)
def test_a_consumer_that_another_thread_reads_from_says_so_and_keeps_nobody_waiting(
    use: Callable[[Consumer], Awaitable[object]],
) -> None:
    async def read(consumer: Consumer) -> None:
        with anyio.fail_after(5), pytest.raises(UsageError, match="in another event loop"):
            await use(consumer)

    async def open_here() -> None:
        _, consumer = await open_both()
        await anyio.to_thread.run_sync(asyncio.run, read(consumer))

    asyncio.run(open_here())
