"""Faults that chance meets too seldom, each as a script."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from logd.errors import LogdError
from logd.types import NodeId
from logd_client import Client
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster, open_cluster
from tests.sim.network import CALM
from tests.sim.run import run_deterministic

TOPIC = "t"
PATIENCE_S = 60.0

pytestmark = pytest.mark.sim


def play(story: Callable[[SimCluster, Client], Awaitable[None]]) -> None:
    """Tell the story to a formed cluster of three."""

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                open_cluster(1, ClusterSettings(network=CALM)) as cluster,
                connected(cluster) as client,
            ):
                while len((await client.admin.describe_cluster()).brokers) < 3:
                    await trio.sleep(0.1)
                await story(cluster, client)

    run_deterministic(main, seed=1)


@contextlib.asynccontextmanager
async def connected(cluster: SimCluster) -> AsyncIterator[Client]:
    async with contextlib.AsyncExitStack() as stack:
        client: Client | None = None
        while client is None:
            await trio.sleep(0.1)
            with contextlib.suppress(LogdError):
                client = await stack.enter_async_context(cluster.client())
        yield client


def test_a_directory_of_a_topic_that_the_restarted_broker_has_not_heard_of_is_kept() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        node = cluster.nodes[NodeId(1)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(create_topic, client)
            while len(directories := node.files.list_directory(f"{DATA_DIR}/groups")) < 2:
                await trio.sleep(0.000_1)
        # Its mark does not say yet that the command was committed, and nobody tells it.
        await node.crash(power=False)
        cluster.network.isolate(node.host)
        node.start()
        await trio.sleep(5.0)

        assert node.files.list_directory(f"{DATA_DIR}/groups") == directories
        cluster.network.heal()  # The client's own, too: it is told what became of its topic.

    play(story)


async def create_topic(client: Client) -> None:
    with contextlib.suppress(LogdError):
        await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
