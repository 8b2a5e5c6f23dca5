"""What is created while brokers are down goes to those that are alive, if they are enough."""

from __future__ import annotations

import pytest
import trio

from logd.limits import MIB
from logd.metadata.features import AVOID_LEVEL
from logd.types import METADATA_GROUP, NodeId
from logd.wire.messages import PartitionInfo
from logd_client import Client
from tests.sim import stories
from tests.sim.cluster import ClusterSettings, SimCluster
from tests.sim.files import CAPACITY_BYTES_DEFAULT
from tests.sim.network import CALM

PARTITIONS = 5
REPLACE_AFTER_MS = 4_000

pytestmark = pytest.mark.sim


def others_than_the_controller(cluster: SimCluster) -> list[NodeId]:
    controller = cluster.leader_of(METADATA_GROUP)
    assert controller is not None
    return [node for node in cluster.nodes if node != controller.node]


async def go_down(cluster: SimCluster, *nodes: NodeId) -> None:
    """Have them killed, and wait until the others have noticed."""
    for node in nodes:
        await cluster.nodes[node].crash(power=False)
    await trio.sleep(2)


def held(partitions: list[PartitionInfo]) -> set[int]:
    return {node for partition in partitions for node in partition.replicas}


async def check_nothing_was_moved(client: Client, created: list[PartitionInfo]) -> None:
    now = (await client.admin.describe_topic("during")).partitions
    assert [p.replicas for p in now] == [p.replicas for p in created]
    assert (await client.admin.describe_rebalance()).plan is None


def test_a_topic_avoids_a_broker_that_is_down_and_the_next_does_not_once_it_is_back() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        victim = others_than_the_controller(cluster)[0]
        await go_down(cluster, victim)

        created = await client.admin.create_topic("during", partitions=PARTITIONS, replicas=3)
        assert held(created.partitions) == cluster.nodes.keys() - {victim}
        altered = await client.admin.alter_topic("during", {}, partitions=2 * PARTITIONS)
        assert held(altered.partitions) == cluster.nodes.keys() - {victim}
        await trio.sleep(2 * REPLACE_AFTER_MS / 1000)  # It is lost now, and there is nothing to do.
        await check_nothing_was_moved(client, altered.partitions)

        cluster.nodes[victim].start()
        await trio.sleep(5)
        created = await client.admin.create_topic("after", partitions=PARTITIONS, replicas=3)
        assert victim in held(created.partitions)
        await check_nothing_was_moved(client, altered.partitions)

    settings = ClusterSettings(brokers=5, network=CALM, replace_after_ms=REPLACE_AFTER_MS)
    stories.play(story, settings)


def test_a_cluster_of_three_makes_topics_of_three_replicas_while_one_broker_is_down() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        victim = others_than_the_controller(cluster)[0]
        await go_down(cluster, victim)

        created = await client.admin.create_topic("t", partitions=PARTITIONS)

        for partition in created.partitions:
            assert set(partition.replicas) == cluster.nodes.keys()
            assert partition.replicas[-1] == victim
            assert partition.leader not in (None, victim)
        cluster.nodes[victim].start()
        async with client.producer("t") as producer:
            for number in range(PARTITIONS):
                await producer.append(b"value", partition=number)
        while len(cluster.nodes[victim].groups) < 1 + PARTITIONS:
            await trio.sleep(0.1)

    stories.play(story)


def test_a_topic_avoids_a_full_disk_while_there_are_others() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        victim = others_than_the_controller(cluster)[0]
        files = cluster.nodes[victim].files
        files.capacity_bytes = files.used_bytes() + 3 * MIB
        await trio.sleep(2)

        created = await client.admin.create_topic("during", partitions=PARTITIONS, replicas=3)
        assert held(created.partitions) == cluster.nodes.keys() - {victim}
        altered = await client.admin.alter_topic("during", {}, partitions=2 * PARTITIONS)
        assert held(altered.partitions) == cluster.nodes.keys() - {victim}
        created = await client.admin.create_topic("wide", partitions=PARTITIONS, replicas=5)
        assert {p.replicas[-1] for p in created.partitions} == {victim}

        files.capacity_bytes = CAPACITY_BYTES_DEFAULT
        await trio.sleep(2)
        created = await client.admin.create_topic("after", partitions=PARTITIONS, replicas=3)
        assert victim in held(created.partitions)

    settings = ClusterSettings(brokers=5, network=CALM, disk_free_bytes_min=4 * MIB)
    stories.play(story, settings)


def test_below_the_level_for_it_a_topic_is_placed_as_by_an_older_version() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await go_down(cluster, others_than_the_controller(cluster)[0])

        created = await client.admin.create_topic("t", partitions=PARTITIONS, replicas=3)

        assert held(created.partitions) == cluster.nodes.keys()

    level = AVOID_LEVEL - 1
    stories.play(story, ClusterSettings(brokers=5, network=CALM, feature_level_max=level))
