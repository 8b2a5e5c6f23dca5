"""``logd cluster status`` while brokers are down: the truth, and as soon as it can be known."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from logd.broker.admin import ADMIN_HANDLERS
from logd.broker.broker import Broker
from logd.cli.cluster import Status, ask_status
from logd.errors import LogdError, UnavailableError
from logd.types import METADATA_GROUP, NodeId
from logd.wire.messages import Kind, Message
from logd_client import Client
from tests.sim.cluster import ClusterSettings, SimCluster, open_cluster
from tests.sim.network import CALM
from tests.sim.run import run_deterministic

AT_ONCE_S = 2.5
"""Less than an election is waited for, also where nothing says that a broker is down."""
LOST_S = 5.0
"""After so long a cluster has lost a broker that is gone, and settled without it."""

Story = Callable[[SimCluster], Awaitable[None]]

pytestmark = pytest.mark.sim


def tell(story: Story) -> None:
    """With one topic on all brokers, and another that has a partition on each."""

    async def main() -> None:
        async with (
            open_cluster(1, ClusterSettings(network=CALM)) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client: Client | None = None
            while client is None:
                await trio.sleep(0.1)
                with contextlib.suppress(LogdError):
                    client = await stack.enter_async_context(cluster.client())
            while len((await client.admin.describe_cluster()).brokers) < 3:
                await trio.sleep(0.1)
            await client.admin.create_topic("on_all", partitions=1, replicas=3)
            await client.admin.create_topic("on_one", partitions=3, replicas=1)
            await story(cluster)

    run_deterministic(main, seed=1)


async def status(cluster: SimCluster) -> Status:
    """As the command asks, which has to meet the cluster first."""
    async with cluster.client() as client:
        return await ask_status(client)


@pytest.mark.parametrize("vanish", [False, True], ids=["refuses", "does not answer"])
def test_partitions_whose_brokers_are_down_are_offline_at_once(vanish: bool) -> None:
    async def story(cluster: SimCluster) -> None:
        await cluster.nodes[NodeId(3)].crash(power=False, vanish=vanish)
        await trio.sleep(LOST_S)

        with trio.fail_after(AT_ONCE_S):
            found = await status(cluster)

        assert found.state == "degraded"
        assert [name.partition("/")[0] for name in found.offline] == ["on_one"]
        assert found.under_replicated == ["on_all/0"]

    tell(story)


@pytest.mark.parametrize("vanish", [False, True], ids=["refuse", "do not answer"])
def test_without_a_majority_nobody_waits_for_an_election(vanish: bool) -> None:
    async def story(cluster: SimCluster) -> None:
        for node in (2, 3):
            await cluster.nodes[NodeId(node)].crash(power=False, vanish=vanish)
        await trio.sleep(LOST_S)

        with trio.fail_after(AT_ONCE_S):
            found = await status(cluster)

        assert found.state == "unavailable"
        assert found.problems[0].startswith(
            "the cluster has no controller: 1 of 3 brokers is alive"
        )

    tell(story)


def test_brokers_that_only_follow_the_metadata_log_elect_nobody() -> None:
    async def story(cluster: SimCluster) -> None:
        cluster.join()
        await trio.sleep(LOST_S)
        for node in (1, 2):
            await cluster.nodes[NodeId(node)].crash(power=False, vanish=False)
        await trio.sleep(LOST_S)

        with trio.fail_after(AT_ONCE_S):
            found = await status(cluster)

        assert found.state == "unavailable"
        assert [broker.alive for broker in found.brokers] == [False, False, True, True]

    tell(story)


def test_an_election_is_waited_for() -> None:
    async def story(cluster: SimCluster) -> None:
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        await controller.crash(power=False)

        found = await status(cluster)

        assert (found.state, found.controller is None) == ("degraded", False)

    tell(story)


def test_the_error_of_a_broker_that_answers_with_nothing_else_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that may pass, for which it is asked again until nobody waits any longer."""
    describe = ADMIN_HANDLERS[Kind.DESCRIBE_BROKER]

    async def refuse(broker: Broker, request: Any) -> Message:
        if broker.config.node_id == 2:
            raise UnavailableError("no file descriptor is left")
        return await describe(broker, request)

    async def story(cluster: SimCluster) -> None:
        monkeypatch.setitem(ADMIN_HANDLERS, Kind.DESCRIBE_BROKER, refuse)

        (problem,) = (await status(cluster)).problems

        assert problem.startswith("broker 2 is alive and has not told")
        assert "no file descriptor is left" in problem

    tell(story)


def test_a_broker_that_is_cut_off_does_not_make_others_offline() -> None:
    """It hears nobody, and what it says is not asked of those whom it takes to be down."""

    async def story(cluster: SimCluster) -> None:
        alone, *others = cluster.nodes.values()
        cut = [(alone.host, other.host) for other in others]
        cluster.network.hold(cut + [(there, here) for here, there in cut])
        await trio.sleep(LOST_S)

        found = await status(cluster)

        assert found.controller in (2, 3)
        assert found.offline == []

    tell(story)


def test_what_happened_to_a_partition_is_told_as_of_a_deleted_one_once_it_is() -> None:
    async def story(cluster: SimCluster) -> None:
        async with cluster.client() as client:
            [partition] = (await client.admin.describe_topic("on_all")).partitions
            broker = cluster.nodes[NodeId(1)].broker
            assert broker is not None
            assert broker.name_of(partition.group) == "on_all/0"
            assert broker.name_of(partition.group + 1000) == "a new partition"

            await client.admin.delete_topic("on_all")
            await trio.sleep(1)

            assert broker.name_of(partition.group) == "a deleted partition"

    tell(story)
