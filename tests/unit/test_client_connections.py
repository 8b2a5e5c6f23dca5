"""The connections of one client, which its partitions share."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio

from logd.errors import ConnectionFailedError, ConnectionLostError, LogdError
from logd.types import Buffer, NodeId
from logd.wire.messages import BrokerInfo, MetadataResponse
from logd_client.background import Background, task_group
from logd_client.cluster import ClusterView
from logd_client.connection import Lane
from logd_client.connections import RECONNECT_TIMEOUT_S, Connections
from logd_client.environment import Environment
from logd_client.transport import Receiver, Stream
from tests.support.producing import in_virtual_time

FROZEN = NodeId(1)
PARTITIONS = 50


class Frozen:
    """A network whose brokers accept no connection and refuse none."""

    def __init__(self) -> None:
        self.tried = 0

    async def connect(self, host: str, port: int) -> Stream:
        self.tried += 1
        await trio.sleep_forever()
        raise AssertionError("unreachable")


class Stopping(Frozen):
    """A network whose brokers accept connections, and close them before they have greeted."""

    async def connect(self, host: str, port: int) -> Stream:
        self.tried += 1
        return Closed()


class Closed:
    """A stream whose other end has gone."""

    async def deliver_to(self, receiver: Receiver) -> None:
        await trio.lowlevel.checkpoint()

    async def send(self, parts: Sequence[Buffer]) -> None:
        """All of it is taken."""

    def send_nowait(self, parts: Sequence[Buffer]) -> int:
        return sum(map(len, parts))

    async def aclose(self) -> None:
        """It is closed."""


def connections_over(network: Frozen, tasks: Background) -> Connections:
    view = ClusterView()
    view.learn(
        MetadataResponse(
            cluster_id="c",
            controller=None,
            brokers=[BrokerInfo(node_id=FROZEN, host="127.0.0.1", port=1)],
            topics=[],
        )
    )
    environment = Environment(network, trio.current_time, lambda: 0, random.Random(0))
    return Connections(view, environment, tasks, client_id="test", connect_timeout_s=5)


@in_virtual_time
async def test_all_who_want_a_broker_that_does_not_answer_are_told_so_together() -> None:
    """Not one after the other: the last of many partitions would wait for minutes before it asks
    who leads it now."""
    network = Frozen()
    told: list[float] = []

    async with task_group() as tasks:
        connections = connections_over(network, Background(tasks))

        async def want() -> None:
            with pytest.raises(ConnectionFailedError, match="not connected within"):
                await connections.to(FROZEN, Lane.PRODUCE)
            told.append(trio.current_time())

        began = trio.current_time()
        for _ in range(PARTITIONS):
            tasks.start_soon(want)

    assert network.tried == 1
    assert [time - began for time in told] == [pytest.approx(RECONNECT_TIMEOUT_S)] * PARTITIONS


@in_virtual_time
async def test_what_one_of_them_says_of_its_error_is_said_of_no_other() -> None:
    """Who had asked before on another connection is in doubt; who has sent nothing is not."""
    told: list[LogdError] = []
    async with task_group() as tasks:
        connections = connections_over(Frozen(), Background(tasks))

        async def want() -> None:
            with pytest.raises(ConnectionFailedError) as failed:
                await connections.to(FROZEN, Lane.PRODUCE)
            told.append(failed.value)
            assert not failed.value.may_have_applied
            failed.value.may_have_applied = True

        for _ in range(3):
            tasks.start_soon(want)

    assert len({str(error) for error in told}) == 1


@in_virtual_time
async def test_who_comes_after_a_failure_tries_again() -> None:
    network = Frozen()
    async with task_group() as tasks:
        connections = connections_over(network, Background(tasks))
        for _ in range(2):
            with pytest.raises(ConnectionFailedError):
                await connections.to(FROZEN, Lane.PRODUCE)

    assert network.tried == 2


@in_virtual_time
async def test_who_gives_up_connecting_leaves_it_to_the_others() -> None:
    network = Frozen()
    async with task_group() as tasks:
        connections = connections_over(network, Background(tasks))

        async def want() -> None:
            with pytest.raises(ConnectionFailedError):
                await connections.to(FROZEN, Lane.PRODUCE)

        with trio.move_on_after(RECONNECT_TIMEOUT_S / 2):
            async with trio.open_nursery() as impatient:
                impatient.start_soon(want)
                await trio.sleep(0)
                tasks.start_soon(want)
        await trio.sleep(0)

        assert network.tried == 2


@in_virtual_time
async def test_a_connection_that_is_lost_before_it_is_used_leaves_nothing_in_doubt() -> None:
    """Else a topic would not be created elsewhere, because one broker was just stopping."""
    async with task_group() as tasks:
        connections = connections_over(Stopping(), Background(tasks))
        with pytest.raises(ConnectionLostError, match="without an answer") as caught:
            await connections.to(FROZEN, Lane.CONTROL)

    assert not caught.value.may_have_applied
