"""Topics with ``durability=replicated``: what they lose, when, and that it is told.

Memory outlives processes and not machines.  So killing everybody loses nothing, one machine
without power loses nothing, and a majority of them may lose what was acknowledged last, of
topics that chose so, and of no others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

import pytest
import trio

from logd.errors import LogdError
from logd.replication.group import Group
from logd.replication.standing import trouble_of
from logd.types import GroupId
from logd_client import Client
from logd_client.delivery import Ack
from tests.sim.cluster import ClusterSettings, SimCluster, SimNode, open_cluster
from tests.sim.env import BlockingConditions
from tests.sim.network import CALM
from tests.sim.run import run_deterministic
from tests.sim.stories import connected

TOPIC = "quick"
SYNCED = "sure"
PATIENCE_S = 120.0
NEVER_IN_TIME = BlockingConditions(latency_s_min=5.0, latency_s_mean=0.0, spike_probability=0.0)

pytestmark = pytest.mark.sim


def play(story: Callable[[SimCluster, Client, GroupId], Awaitable[None]], seed: int = 1) -> None:
    """Tell the story to a formed cluster of three with a topic of each durability."""

    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with (
                open_cluster(seed, ClusterSettings(network=CALM)) as cluster,
                connected(cluster) as client,
            ):
                while len((await client.admin.describe_cluster()).brokers) < 3:
                    await trio.sleep(0.1)
                await client.admin.create_topic(SYNCED, partitions=1, replicas=3)
                made = await client.admin.create_topic(
                    TOPIC, partitions=1, replicas=3, config={"durability": "replicated"}
                )
                group = GroupId(made.partitions[0].group)
                await until(lambda: all(vouches(cluster, node, group) for node in cluster.nodes))
                await story(cluster, client, group)

    run_deterministic(main, seed=seed)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.sleep(0.01)


def replica_on(cluster: SimCluster, node: int, group: GroupId) -> Group | None:
    return {int(n): each for n, each in cluster.nodes.items()}[node].groups.get(group)


def vouches(cluster: SimCluster, node: int, group: GroupId) -> bool:
    replica = replica_on(cluster, node, group)
    return replica is not None and replica.core.vouches


async def append(client: Client, topic: str, *values: bytes) -> list[Ack]:
    async with client.producer(topic) as producer:
        return [await producer.append(value) for value in values]


async def read(client: Client, topic: str) -> list[bytes]:
    """All there is, once there is a leader to say so."""
    while True:
        with contextlib.suppress(LogdError), trio.move_on_after(10.0):
            end = (await client.admin.offsets(topic, 0)).data_end
            values: list[bytes] = []
            async with client.consumer(topic, start="earliest") as consumer:
                while (consumer.position(0) or 0) < end:
                    with trio.move_on_after(0.5):
                        async for batch in consumer.batches():
                            values += [value or b"" for value in batch.values]
                            if (consumer.position(0) or 0) >= end:
                                break
            return values
        await trio.sleep(0.1)


async def crash_all(cluster: SimCluster, *, power: bool) -> None:
    for node in cluster.nodes.values():
        await node.crash(power=power)
    for node in cluster.nodes.values():
        node.start()


def some_leader(cluster: SimCluster, group: GroupId) -> SimNode:
    leader = cluster.leader_of(group)
    assert leader is not None
    return leader


def test_an_acknowledgement_waits_for_no_disk_and_says_so() -> None:
    async def story(cluster: SimCluster, client: Client, group: GroupId) -> None:
        (sure,) = await append(client, SYNCED, b"synced")
        async with client.producer(TOPIC) as producer:
            await producer.append(b"first")
            for node in cluster.nodes.values():
                node.set_blocking(NEVER_IN_TIME)
            began = trio.current_time()
            ack = await producer.append(b"second")

            assert trio.current_time() - began < 1.0
        assert ack.durability == "replicated"
        assert sure.durability == "synced"

    play(story)


def test_killing_every_process_loses_nothing() -> None:
    async def story(cluster: SimCluster, client: Client, group: GroupId) -> None:
        await append(client, TOPIC, b"1", b"2", b"3")
        await crash_all(cluster, power=False)

        assert await read(client, TOPIC) == [b"1", b"2", b"3"]
        assert cluster.trace.digest
        assert not any(
            replica.possible_loss
            for node in cluster.nodes
            if (replica := replica_on(cluster, node, group)) is not None
        )

    play(story)


@pytest.mark.parametrize("seed", range(5))
def test_one_machine_without_power_after_the_other_loses_nothing(seed: int) -> None:
    async def story(cluster: SimCluster, client: Client, group: GroupId) -> None:
        values: list[bytes] = []
        for round_ in range(4):
            news = [f"{round_}.{number}".encode() for number in range(3)]
            await append(client, TOPIC, *news)
            values += news
            leader = some_leader(cluster, group)
            await leader.crash(power=True)
            leader.start()
            await until(lambda: vouches(cluster, leader.node, group))  # noqa: B023

        assert await read(client, TOPIC) == values

    play(story, seed)


def test_a_machine_that_lost_power_does_not_vote_until_it_is_caught_up() -> None:
    async def story(cluster: SimCluster, client: Client, group: GroupId) -> None:
        leader = some_leader(cluster, group)
        victim, witness = (node for node in cluster.nodes.values() if node is not leader)
        async with client.producer(TOPIC) as producer:
            cluster.network.isolate(witness.host)
            victim.set_blocking(NEVER_IN_TIME)
            await producer.append(b"of the leader and the victim")
            await victim.crash(power=True)
            await leader.crash(power=False)
        victim.set_blocking(cluster.settings.blocking)
        cluster.network.heal()
        victim.start()
        await trio.sleep(20.0)

        # The two could elect one of them, and neither has what was acknowledged.
        assert cluster.leader_of(group) is None
        replica = replica_on(cluster, victim.node, group)
        assert replica is not None
        assert "lost power" in trouble_of(replica)
        leader.start()
        assert await read(client, TOPIC) == [b"of the leader and the victim"]

    play(story)


def test_all_machines_without_power_lose_only_what_chose_so_and_say_so() -> None:
    async def story(cluster: SimCluster, client: Client, group: GroupId) -> None:
        await append(client, SYNCED, b"sure")
        await append(client, TOPIC, b"old")
        await trio.sleep(1.0)  # Synced in the background.
        for node in cluster.nodes.values():
            node.set_blocking(NEVER_IN_TIME)
        async with client.producer(TOPIC) as producer:
            await producer.append(b"new")
        for node in cluster.nodes.values():
            node.set_blocking(cluster.settings.blocking)
        await crash_all(cluster, power=True)

        assert await read(client, SYNCED) == [b"sure"]
        values = await read(client, TOPIC)
        assert values[0] == b"old"
        leader = some_leader(cluster, group)
        replica = replica_on(cluster, leader.node, group)
        assert replica is not None
        assert "may be lost" in trouble_of(replica)
        assert replica.counts.restarts_with_loss == 1
        await append(client, TOPIC, b"goes on")
        await until(lambda: all(vouches(cluster, node, group) for node in cluster.nodes))

    play(story)


def test_a_topic_may_change_its_mind_in_both_directions() -> None:
    async def story(cluster: SimCluster, client: Client, group: GroupId) -> None:
        await append(client, TOPIC, b"in memory")
        await client.admin.alter_topic(TOPIC, {"durability": "synced"})
        await until(
            lambda: all(
                replica is not None and replica.core.hard_state.rests_on == 0
                for replica in (replica_on(cluster, node, group) for node in cluster.nodes)
            )
        )
        (ack,) = await append(client, TOPIC, b"on the disk")
        assert ack.durability == "synced"
        await crash_all(cluster, power=True)

        assert await read(client, TOPIC) == [b"in memory", b"on the disk"]
        await client.admin.alter_topic(TOPIC, {"durability": "replicated"})
        await until(lambda: all(vouches(cluster, node, group) for node in cluster.nodes))
        (ack,) = await append(client, TOPIC, b"in memory again")
        assert ack.durability == "replicated"

    play(story)


def test_a_clean_shutdown_leaves_nothing_to_doubt() -> None:
    async def story(cluster: SimCluster, client: Client, group: GroupId) -> None:
        await append(client, TOPIC, b"value")
        for node in cluster.nodes.values():
            await node.stop()
            node.files.crash(cluster.chance)
            node._boots += 1
        for node in cluster.nodes.values():
            node.start()

        assert await read(client, TOPIC) == [b"value"]
        leader = replica_on(cluster, some_leader(cluster, group).node, group)
        assert leader is not None
        assert not trouble_of(leader)

    play(story)
