"""Damage on one replica is found and repaired from its peers, and nothing is lost."""

from __future__ import annotations

import contextlib
import random

import pytest
import trio

from logd.errors import LogdError
from logd.limits import SEGMENT_HEADER_BYTES
from logd.types import GroupId, NodeId
from logd_client import Client
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster, SimNode, open_cluster
from tests.sim.network import CALM
from tests.sim.run import run_deterministic

TOPIC = "t"
RECORDS = 400
REPAIRED_S = 60.0

pytestmark = pytest.mark.sim


def settings() -> ClusterSettings:
    return ClusterSettings(brokers=3, tail_cache_bytes=0, network=CALM)


async def filled_topic(client: Client) -> GroupId:
    """A topic of one partition with some segments of records; returns its group."""
    topic = None
    while topic is None:
        try:
            topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
        except LogdError:
            await trio.sleep(0.2)
    async with client.producer(TOPIC, batch_bytes=4096) as producer:
        for number in range(RECORDS):
            await producer.append(b"%d-" % number + bytes(600))
    return GroupId(topic.partitions[0].group)


async def connected(cluster: SimCluster, stack: contextlib.AsyncExitStack) -> Client:
    while True:
        with contextlib.suppress(LogdError):
            return await stack.enter_async_context(cluster.client())
        await trio.sleep(0.2)


def segments(node: SimNode, group: GroupId) -> list[str]:
    directory = f"{DATA_DIR}/groups/{group:020}"
    names = node.files.list_directory(directory)
    return [f"{directory}/{name}" for name in names if name.endswith(".log")]


def flip_some(node: SimNode, group: GroupId, chance: random.Random, count: int) -> None:
    paths = segments(node, group)
    assert len(paths) > 2
    for _ in range(count):
        path = chance.choice(paths[:-1])  # Sealed: all of it is below the commit offset.
        size = len(node.files.content(path))
        node.files.flip(path, chance.randrange(SEGMENT_HEADER_BYTES, size), chance.randrange(8))


async def values_on(client: Client, node: NodeId, count: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    async with client.consumer(TOPIC, start="earliest", from_replica=node) as consumer:
        async for batch in consumer.batches():
            values += batch.values
            if len(values) >= count:
                break
    return values


async def all_there(client: Client, node: NodeId) -> None:
    """Every record can be read from this node, in order, within bounded time."""
    with trio.fail_after(REPAIRED_S):
        while True:
            try:
                values = await values_on(client, node, RECORDS)
            except LogdError:
                await trio.sleep(1.0)
                continue
            assert [v.split(b"-")[0] for v in values if v is not None] == [
                b"%d" % number for number in range(RECORDS)
            ]
            return


@pytest.mark.parametrize("seed", range(4))
def test_a_replica_damaged_while_it_was_down_is_whole_again_after_its_start(seed: int) -> None:
    async def story() -> None:
        async with (
            open_cluster(seed, settings()) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await connected(cluster, stack)
            group = await filled_topic(client)
            victim = cluster.nodes[NodeId(1 + seed % 3)]
            await victim.stop()
            flip_some(victim, group, random.Random(seed), 30)

            victim.start()

            for node in cluster.nodes:
                await all_there(client, node)
            assert "damage_repaired" in {event.name for event in cluster.trace.events}

    run_deterministic(story, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_a_running_replica_with_damage_repairs_what_is_read(seed: int) -> None:
    async def story() -> None:
        async with (
            open_cluster(seed, settings()) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await connected(cluster, stack)
            group = await filled_topic(client)
            chance = random.Random(seed)

            for node in cluster.nodes.values():
                flip_some(node, group, chance, 1)

            for number in cluster.nodes:
                await all_there(client, number)

    run_deterministic(story, seed=seed)


def test_two_replicas_damaged_in_different_places_heal_each_other() -> None:
    async def story() -> None:
        async with (
            open_cluster(7, settings()) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await connected(cluster, stack)
            group = await filled_topic(client)
            for node in cluster.nodes.values():
                await node.stop()
            first, second = cluster.nodes[NodeId(1)], cluster.nodes[NodeId(2)]
            first_path, second_path = segments(first, group)[0], segments(second, group)[1]
            first.files.overwrite(first_path, SEGMENT_HEADER_BYTES + 200, bytes(3000))
            second.files.overwrite(second_path, SEGMENT_HEADER_BYTES + 200, bytes(3000))

            first.start()
            second.start()  # The third stays away: the two have only each other.

            await all_there(client, NodeId(1))
            await all_there(client, NodeId(2))

    run_deterministic(story, seed=7)
