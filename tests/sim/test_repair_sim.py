"""Damage on one replica is found and repaired from its peers, and nothing is lost."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator

import pytest
import trio

from logd.broker.partitions import Partitions
from logd.errors import LogdError
from logd.limits import KIB, SEGMENT_HEADER_BYTES
from logd.metadata.state import PartitionPlacement
from logd.storage.file_header import FILE_HEADER_BYTES
from logd.types import METADATA_GROUP, GroupId, NodeId, Offset
from logd_client import Client
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster, SimNode, open_cluster
from tests.sim.knobs import Knobs
from tests.sim.network import CALM
from tests.sim.run import run_deterministic

TOPIC = "t"
RECORDS = 400
REPAIRED_S = 60.0
MARKS = 512

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


@contextlib.asynccontextmanager
async def filled_cluster(seed: int) -> AsyncIterator[tuple[SimCluster, Client, GroupId]]:
    """Three brokers, a client of theirs, and the group of a topic with some segments."""
    async with (
        open_cluster(seed, settings()) as cluster,
        contextlib.AsyncExitStack() as stack,
    ):
        client = await connected(cluster, stack)
        yield cluster, client, await filled_topic(client)


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
        async with filled_cluster(seed) as (cluster, client, group):
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
        async with filled_cluster(seed) as (cluster, client, group):
            chance = random.Random(seed)

            for node in cluster.nodes.values():
                flip_some(node, group, chance, 1)

            for number in cluster.nodes:
                await all_there(client, number)

    run_deterministic(story, seed=seed)


def test_a_follower_is_fed_on_when_what_it_lacks_was_damaged_on_its_leader_and_is_whole() -> None:
    """Nothing else is appended: it is the repair that has the leader go on."""

    async def story() -> None:
        async with filled_cluster(1) as (cluster, client, group):
            leader = cluster.leader_of(group)
            assert leader is not None
            behind = next(node for node in cluster.nodes.values() if node is not leader)
            await behind.stop()
            had = len(segments(leader, group))
            async with client.producer(TOPIC, batch_bytes=4096) as producer:
                for _ in range(RECORDS):
                    await producer.append(bytes(600))
            for path in segments(leader, group)[had:-1]:
                leader.files.flip(path, SEGMENT_HEADER_BYTES + 1000, 3)

            behind.start()

            with trio.fail_after(REPAIRED_S):
                while (
                    group not in behind.groups or behind.groups[group].log.end_offset < RECORDS * 2
                ):
                    await trio.sleep(0.1)
            assert "damage_repaired" in {
                event.name for event in cluster.trace.events if event.source == f"node{leader.node}"
            }

    run_deterministic(story, seed=1)


def test_a_replica_that_was_mended_while_a_round_over_all_of_them_goes_on_is_opened_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That round looked for what is to be opened before."""
    remove_others = Partitions._remove_others

    async def long(partitions: Partitions, wanted: dict[GroupId, PartitionPlacement]) -> bool:
        while partitions._node.shut:
            await trio.sleep(0.01)
        return await remove_others(partitions, wanted)

    async def story() -> None:
        async with filled_cluster(1) as (cluster, _, group):
            victim = cluster.nodes[NodeId(1)]
            await victim.stop()
            first = segments(victim, group)[0]
            overwrite(victim, first)
            overwrite(victim, first, MARKS)  # Else nobody would look there at the start.

            monkeypatch.setattr(Partitions, "_remove_others", long)
            victim.start()

            with trio.fail_after(REPAIRED_S):
                while group not in victim.groups:
                    await trio.sleep(0.1)
            assert "damage_repaired" in {event.name for event in cluster.trace.events}

    run_deterministic(story, seed=1)


def test_two_replicas_damaged_in_different_places_heal_each_other() -> None:
    async def story() -> None:
        async with filled_cluster(7) as (cluster, client, group):
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


# --- damage where peers have trimmed ------------------------------------------------------


def trimming(**knobs: int) -> ClusterSettings:
    return ClusterSettings(segment_bytes=16 * KIB, network=CALM, knobs=Knobs(**knobs))


async def formed(cluster: SimCluster, stack: contextlib.AsyncExitStack) -> Client:
    client = await connected(cluster, stack)
    while len((await client.admin.describe_cluster()).brokers) < 3:
        await trio.sleep(0.1)
    return client


async def trimming_topic(client: Client) -> GroupId:
    topic = await client.admin.create_topic(
        TOPIC,
        partitions=1,
        replicas=3,
        config={"retention_bytes": "128KiB"},
    )
    return GroupId(topic.partitions[0].group)


async def append_kib(client: Client, count: int) -> None:
    async with client.producer(TOPIC) as producer:
        for _ in range(count // 8):
            await producer.append(bytes(8 * KIB))


def start_of(cluster: SimCluster, group: GroupId) -> int:
    """Below it nobody who runs has anything."""
    return min(node.groups[group].log.start_offset for node in cluster.alive())


async def trimmed_beyond(cluster: SimCluster, client: Client, group: GroupId, offset: int) -> None:
    while start_of(cluster, group) < offset:
        await append_kib(client, 64)
        await trio.sleep(1)


async def taken_up(cluster: SimCluster, victim: SimNode, group: GroupId) -> None:
    """The replica is whole, and has caught up with a leader."""
    with trio.fail_after(REPAIRED_S):
        while True:
            leader = cluster.leader_of(group)
            if leader is not None and group in victim.groups:
                end = leader.groups[group].log.end_offset
                if victim.groups[group].core.synced_end == end:
                    return
            await trio.sleep(0.1)


def overwrite(node: SimNode, path: str, position: int = SEGMENT_HEADER_BYTES) -> None:
    node.files.overwrite(path, position, b"\xa5" * 3000)


def damage_kept(node: SimNode, group: GroupId) -> None:
    """All that it has kept of the state of what is fed from the log."""
    directory = f"{DATA_DIR}/groups/{group:020}"
    names = node.files.list_directory(directory)
    for name in [name for name in names if name.startswith("application-")]:
        node.files.flip(f"{directory}/{name}", FILE_HEADER_BYTES)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_log_below_what_its_peers_have_is_replaced_by_their_state(seed: int) -> None:
    """Nobody can fill its holes any more, and nobody would begin to feed a replica that is shut."""

    async def story() -> None:
        async with (
            open_cluster(
                seed,
                trimming(snapshot_chunk_bytes=50),
            ) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await formed(cluster, stack)
            group = await trimming_topic(client)
            await append_kib(client, 200)
            victim = cluster.nodes[NodeId(1 + seed)]
            await victim.stop()
            overwrite(victim, segments(victim, group)[-1 if seed else 1])
            await trimmed_beyond(cluster, client, group, 40)

            victim.start()
            await taken_up(cluster, victim, group)

            # It votes: with one of the others gone nothing would be committed else.
            other = next(node for node in cluster.alive() if node is not victim)
            await other.crash(power=True)
            with trio.fail_after(REPAIRED_S):
                await append_kib(client, 8)

    run_deterministic(story, seed=seed)


def test_damage_that_peers_have_trimmed_is_let_go_and_all_else_is_kept() -> None:
    async def story() -> None:
        async with (
            open_cluster(1, trimming()) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await formed(cluster, stack)
            group = await trimming_topic(client)
            await append_kib(client, 200)
            victim = cluster.nodes[NodeId(1)]
            await victim.stop()
            first, *_, last = segments(victim, group)
            overwrite(victim, first)
            overwrite(victim, first, MARKS)  # Else nobody would look there at the start.
            end = int(last.rpartition("/")[2].partition(".")[0])
            await append_kib(client, 40)
            await trio.sleep(12)
            start = start_of(cluster, group)
            assert start < end

            victim.start()
            await taken_up(cluster, victim, group)

            names = {event.name for event in cluster.trace.events if event.source == "node1"}
            assert "snapshot_installed" not in names
            log = victim.groups[group].log
            assert 0 < log.start_offset <= start
            assert Offset(end) in log.segment_bases

    run_deterministic(story, seed=1)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_log_begins_where_its_peers_do_if_that_is_within_the_segment_of_its_hole(
    seed: int,
) -> None:
    async def story() -> None:
        async with (
            open_cluster(seed, trimming()) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await formed(cluster, stack)
            topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3)
            group = GroupId(topic.partitions[0].group)
            victim = cluster.nodes[NodeId(1 + seed)]
            await victim.stop()
            await append_kib(client, 96)
            victim.start()
            await taken_up(cluster, victim, group)  # What comes at once is in one segment.
            await append_kib(client, 40)
            await victim.stop()
            path, second, *_ = segments(victim, group)
            behind = int(second.rpartition("/")[2].partition(".")[0])
            victim.files.overwrite(path, SEGMENT_HEADER_BYTES, b"\xa5" * 90 * KIB)
            overwrite(victim, path, MARKS)  # Else nobody would look there at the start.
            await client.admin.trim_partition(TOPIC, 0, 6)
            with trio.fail_after(REPAIRED_S):
                while (start := start_of(cluster, group)) == 0:
                    await trio.sleep(1)
            assert 0 < start < behind

            victim.start()
            await taken_up(cluster, victim, group)

            assert "snapshot_installed" not in {event.name for event in cluster.trace.events}
            bases = victim.groups[group].log.segment_bases
            assert (bases[0], bases[1]) == (start, behind)
            other = next(node for node in cluster.alive() if node is not victim)
            await other.crash(power=True)
            with trio.fail_after(REPAIRED_S):
                await append_kib(client, 8)

    run_deterministic(story, seed=seed)


def test_damaged_metadata_below_what_the_others_kept_are_replaced_by_their_state() -> None:
    async def story() -> None:
        async with (
            open_cluster(2, trimming(commands_per_snapshot=2)) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await formed(cluster, stack)
            await client.admin.create_topic("first", partitions=1, replicas=3)
            victim = cluster.nodes[NodeId(2)]
            await victim.stop()
            overwrite(victim, segments(victim, METADATA_GROUP)[-1])
            for number in range(12):
                with contextlib.suppress(LogdError):
                    await client.admin.create_topic(f"topic-{number}", partitions=1, replicas=2)

            victim.start()

            topics = {topic.name for topic in await client.admin.list_topics()}
            with trio.fail_after(REPAIRED_S):
                while victim.broker is None or len(victim.broker.metadata.state.topics) < len(
                    topics
                ):
                    await trio.sleep(0.1)
            victim.broker.metadata.state.check_invariants()

    run_deterministic(story, seed=2)


async def topics_known(node: SimNode, count: int) -> None:
    with trio.fail_after(REPAIRED_S):
        while node.broker is None or len(node.broker.metadata.state.topics) < count:
            await trio.sleep(0.1)
    node.broker.metadata.state.check_invariants()


def test_a_broker_whose_kept_metadata_are_damaged_goes_on_with_those_of_another() -> None:
    """The log does not go back to before them, and where they were shipped there is one copy."""

    async def story() -> None:
        async with (
            open_cluster(2, trimming(commands_per_snapshot=2)) as cluster,
            contextlib.AsyncExitStack() as stack,
        ):
            client = await formed(cluster, stack)
            for number in range(12):
                with contextlib.suppress(LogdError):
                    await client.admin.create_topic(f"topic-{number}", partitions=1, replicas=2)
            victim = cluster.nodes[NodeId(2)]
            await victim.stop()
            damage_kept(victim, METADATA_GROUP)

            victim.start()

            count = len(await client.admin.list_topics())
            assert count > 2
            await topics_known(victim, count)
            assert victim.groups[METADATA_GROUP].log.start_offset > 0
            # It is kept from then on: nobody else is needed when it starts again.
            await victim.stop()
            for other in cluster.alive():
                await other.stop()
            victim.start()
            await topics_known(victim, count)

    run_deterministic(story, seed=2)
