"""Compaction on whole clusters: readers, followers and producers notice nothing but less."""

from __future__ import annotations

import random

import pytest
import trio

from logd.errors import LogdError, UsageError
from logd.limits import KIB, SEGMENT_HEADER_BYTES
from logd.record.batch import decode_batch
from logd.record.header import decode_header
from logd.storage.synced_mark import SLOT_POSITIONS
from logd.types import GroupId, NodeId, Offset
from logd_client import Client
from tests.sim import stories
from tests.sim.cluster import DATA_DIR, ClusterSettings, SimCluster, SimNode
from tests.sim.network import CALM

pytestmark = pytest.mark.sim

TOPIC = "t"
KEYS = 20


def play(story: stories.Story) -> None:
    """Tell the story to a formed cluster of three that remembers no batches: whatever is read
    or sent comes from the files."""

    settings = ClusterSettings(network=CALM, tail_cache_bytes=0)
    stories.play(story, settings, patience_s=2 * stories.PATIENCE_S)


async def make_topic(client: Client, **config: str) -> GroupId:
    config = {"cleanup": "compact", "segment_bytes": "64KiB", **config}
    topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3, config=config)
    return GroupId(topic.partitions[0].group)


async def append(
    client: Client, chance: random.Random, count: int, picture: dict[bytes, bytes]
) -> None:
    """Overwrite and delete keys, and note what they say now."""
    async with client.producer(TOPIC, linger_ms=0) as producer:
        for number in range(count):
            key = b"key%d" % chance.randrange(KEYS)
            value = None if chance.random() < 0.2 else b"%d" % number + bytes(4 * KIB)
            await producer.append(value, key=key)
            picture.pop(key, None)
            if value is not None:
                picture[key] = value


async def picture_of(client: Client, node: int | None = None) -> dict[bytes, bytes]:
    """What the keys say in the end, by one replica."""
    end = (await client.admin.offsets(TOPIC, 0)).data_end
    picture: dict[bytes, bytes] = {}
    async with client.consumer(
        TOPIC, start="earliest", stop={0: end}, from_replica=node
    ) as consumer:
        async for record in consumer:
            assert record.key is not None
            picture.pop(record.key, None)
            if record.value is not None:
                picture[record.key] = record.value
    return picture


def records_in_files(node: SimNode, group: GroupId) -> int:
    """Memory may still have more."""
    log = node.groups[group].log
    return sum(
        header.record_count for header in log.headers(log.start_offset) if not header.is_control
    )


def is_compacted(cluster: SimCluster, group: GroupId) -> bool:
    """On every replica far less is left than was appended."""
    return all(node.groups[group].log.size_bytes < 250 * KIB for node in cluster.alive())


async def compacted(cluster: SimCluster, group: GroupId) -> None:
    with trio.fail_after(30):
        while not is_compacted(cluster, group):
            await trio.sleep(0.5)


def test_every_replica_comes_to_the_last_record_of_each_key() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        chance, picture = random.Random(1), dict[bytes, bytes]()
        group = await make_topic(client)
        await append(client, chance, 200, picture)
        await compacted(cluster, group)

        for node in cluster.nodes.values():
            assert records_in_files(node, group) < 100
            assert await picture_of(client, int(node.node)) == picture
        # From the files, too.
        for node in cluster.nodes.values():
            await node.crash(power=False)
            node.start()
        assert await picture_of(client) == picture

    play(story)


def test_an_old_tombstone_goes_and_what_it_deleted_does_not_come_back() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        chance, picture = random.Random(2), dict[bytes, bytes]()
        group = await make_topic(client, tombstone_ms="2s", segment_ms="1s")
        await append(client, chance, 200, picture)
        await compacted(cluster, group)
        await trio.sleep(20)

        for node in cluster.nodes.values():
            assert records_in_files(node, group) <= len(picture) + KEYS // 2
            await node.crash(power=False)
            node.start()
        assert await picture_of(client) == picture

    play(story)


def test_a_follower_that_was_away_catches_up_from_a_compacted_leader() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        chance, picture = random.Random(3), dict[bytes, bytes]()
        group = await make_topic(client)
        await append(client, chance, 30, picture)
        leader = cluster.leader_of(group)
        assert leader is not None
        away = next(node for node in cluster.alive() if node is not leader)
        await away.crash(power=True)
        await append(client, chance, 200, picture)
        await compacted(cluster, group)
        away.start()
        await caught_up(away, leader, group)

        assert await picture_of(client, int(away.node)) == picture

    play(story)


def test_what_was_deleted_while_a_replica_was_away_does_not_come_back_with_it() -> None:
    """However long it was away: a tombstone stays until it has seen it."""

    async def story(cluster: SimCluster, client: Client) -> None:
        chance, picture = random.Random(7), dict[bytes, bytes]()
        group = await make_topic(client, tombstone_ms="2s", segment_ms="1s")
        async with client.producer(TOPIC, linger_ms=0) as producer:
            await producer.append(b"1", key=b"deleted")
        leader = cluster.leader_of(group)
        assert leader is not None
        away = next(node for node in cluster.alive() if node is not leader)
        await caught_up(away, leader, group)
        await away.crash(power=False)
        async with client.producer(TOPIC, linger_ms=0) as producer:
            await producer.append(None, key=b"deleted")
        await append(client, chance, 100, picture)
        await compacted(cluster, group)
        await trio.sleep(20)
        assert all(b"deleted" in tombstones(node, group) for node in cluster.alive())
        away.start()
        await caught_up(away, leader, group)

        for node_id in cluster.nodes:
            assert await picture_of(client, int(node_id)) == picture
        # And goes then.
        await append(client, chance, 100, picture)
        with trio.fail_after(60):
            while any(b"deleted" in tombstones(node, group) for node in cluster.alive()):
                await append(client, chance, 1, picture)
                await trio.sleep(1)
        for node_id in cluster.nodes:
            assert await picture_of(client, int(node_id)) == picture

    play(story)


def tombstones(node: SimNode, group: GroupId) -> set[bytes | None]:
    """The keys that a replica's files say were deleted."""
    log = node.groups[group].log
    found = log.read(log.start_offset, log.end_offset, 2**30, cached_only=False)
    assert found is not None
    keys: set[bytes | None] = set()
    for view in found:
        header = decode_header(view)
        if header.record_count and not header.is_control:
            batch = decode_batch(view)
            rows = zip(batch.keys, batch.values, strict=True)
            keys.update(key for key, value in rows if value is None)
    return keys


def test_a_follower_whose_log_ends_inside_a_gap_of_its_leader_is_sent_the_rest() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client)
        async with client.producer(TOPIC, linger_ms=0, idempotent=False) as producer:
            for _ in range(10):
                await producer.append(bytes(4 * KIB), key=b"same")
            leader = cluster.leader_of(group)
            assert leader is not None
            away = next(node for node in cluster.alive() if node is not leader)
            await away.crash(power=False)
            last = await producer.append(b"0", key=b"same")
            for _ in range(60):
                last = await producer.append(bytes(4 * KIB), key=b"same")
        await compacted(cluster, group)
        away_end = 10
        spans = [
            (header.base_offset, header.end_offset)
            for header in leader.groups[group].log.headers(leader.groups[group].log.start_offset)
            if header.is_gap
        ]
        assert any(base < away_end < end for base, end in spans), spans
        away.start()
        await caught_up(away, leader, group)

        assert set(await picture_of(client, int(away.node))) == {b"same"}
        assert (await client.admin.offsets(TOPIC, 0)).data_end == last.offset + 1

    play(story)


def test_a_follower_that_caught_up_from_a_compacted_leader_can_lead() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        chance, picture = random.Random(4), dict[bytes, bytes]()
        group = await make_topic(client)
        async with client.producer(TOPIC, linger_ms=0) as producer:
            first = await producer.append(b"first", key=b"first")
            picture[b"first"] = b"first"
            leader = cluster.leader_of(group)
            assert leader is not None
            away = next(node for node in cluster.alive() if node is not leader)
            await away.crash(power=True)
            await append(client, chance, 200, picture)
            await compacted(cluster, group)
            away.start()
            await caught_up(away, leader, group)

            await lead(cluster, client, away, group)
            # The same producer goes on in its sequence, which the new leader knows.
            ack = await producer.append(b"second", key=b"first")
            picture[b"first"] = b"second"
            assert ack.offset > first.offset
        assert await picture_of(client) == picture

    play(story)


def test_a_compacted_cluster_survives_the_loss_of_power_everywhere() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        chance, picture = random.Random(5), dict[bytes, bytes]()
        group = await make_topic(client)
        for _ in range(3):
            await append(client, chance, 60, picture)
            await trio.sleep(chance.random() * 6)
            for node in cluster.nodes.values():
                await node.crash(power=True)
            for node in cluster.nodes.values():
                node.start()
        await append(client, chance, 1, picture)
        await compacted(cluster, group)
        for node_id in cluster.nodes:
            assert await picture_of(client, int(node_id)) == picture

    play(story)


def test_a_record_without_a_key_is_refused_before_it_is_sent() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await make_topic(client)
        async with client.producer(TOPIC) as producer:
            for call in (
                lambda: producer.append(b"value"),
                lambda: producer.append_many([b"value"]),
                lambda: producer.append_many([b"value"] * 2, keys=[b"key", None]),
            ):
                with pytest.raises(UsageError, match="every record needs a key"):
                    await call()
            with pytest.raises(UsageError, match="cleanup=compact"):
                producer.append_nowait(b"value")
            await producer.append(b"value", key=b"")
        assert (await client.admin.offsets(TOPIC, 0)).data_end == 2

    play(story)


async def caught_up(node: SimNode, leader: SimNode, group: GroupId) -> None:
    with trio.fail_after(30):
        while (
            group not in node.groups
            or node.groups[group].commit_offset < leader.groups[group].commit_offset
        ):
            await trio.sleep(0.1)


async def lead(cluster: SimCluster, client: Client, node: SimNode, group: GroupId) -> None:
    with trio.fail_after(30):
        while cluster.leader_of(group) is not node:
            try:
                await client.admin.transfer_leader(TOPIC, 0, NodeId(node.node))
            except LogdError:
                await trio.sleep(0.2)


@pytest.mark.parametrize("found", ["running", "shut", "shut, in its last segment"])
def test_a_damaged_segment_is_replaced_by_what_compacted_peers_hold(found: str) -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        chance, picture = random.Random(6), dict[bytes, bytes]()
        group = await make_topic(client)
        await append(client, chance, 60, picture)
        leader = cluster.leader_of(group)
        assert leader is not None
        away = next(node for node in cluster.alive() if node is not leader)
        await trio.sleep(1)  # Its mark is where its log ends.
        bases = away.groups[group].log.segment_bases
        await away.crash(power=False)
        await append(client, chance, 200, picture)
        await compacted(cluster, group)
        # It still has all records of its first segments, and its peers only the last ones.
        damaged = bases[-1] if "last" in found else bases[1]
        path = f"{DATA_DIR}/groups/{group:020}/{damaged:020}.log"
        away.files.flip(path, SEGMENT_HEADER_BYTES + 50 if "last" in found else 20_000)
        if found == "shut":
            for position in SLOT_POSITIONS:
                away.files.overwrite(path, position, b"\xff" * 48)
        away.start()
        await caught_up(away, leader, group)
        with trio.fail_after(40):
            while away.broker is None or not away.broker.node.counts.holes_repaired:
                away.groups[group].log.read(damaged, Offset(damaged + 1), 1, cached_only=False)
                await trio.sleep(1)

        assert away.groups[group].damage is None
        assert await picture_of(client, int(away.node)) == picture

    play(story)
