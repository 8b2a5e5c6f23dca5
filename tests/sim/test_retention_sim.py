"""Retention on whole clusters: as the topic says at the moment, with readers in the way."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trio

from logd.errors import OffsetOutOfRangeError
from logd.limits import KIB
from logd.types import GroupId, NodeId
from logd_client import Client
from tests.sim.cluster import DATA_DIR, SimCluster
from tests.sim.stories import play

TOPIC = "t"

pytestmark = pytest.mark.sim

VALUE = bytes(8 * KIB)


async def append(client: Client, count: int) -> None:
    async with client.producer(TOPIC) as producer:
        for _ in range(count):
            await producer.append(VALUE)


def starts(cluster: SimCluster, group: GroupId) -> list[int]:
    return [node.groups[group].log.start_offset for node in cluster.alive()]


async def make_topic(client: Client, **config: str) -> GroupId:
    topic = await client.admin.create_topic(TOPIC, partitions=1, replicas=3, config=config)
    return GroupId(topic.partitions[0].group)


def test_every_replica_keeps_within_a_size_that_is_set_while_it_runs() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client)
        await append(client, 60)
        await trio.sleep(12)
        assert starts(cluster, group) == [0, 0, 0]

        await client.admin.alter_topic(TOPIC, {"retention_bytes": "200KiB"})
        await trio.sleep(12)

        for node in cluster.alive():
            assert node.groups[group].log.size_bytes <= 200 * KIB
            assert node.files.list_directory(f"{DATA_DIR}/trash") == []
        assert min(starts(cluster, group)) > 0

    play(story)


def test_a_size_is_kept_to_between_the_rounds_too_whatever_the_rate() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client, retention_bytes="128KiB", segment_bytes="64KiB")
        largest = 0
        async with client.producer(TOPIC) as producer:
            for _ in range(40):
                await producer.append_many([VALUE] * 5)
                await trio.sleep(0.1)
                sizes = [node.groups[group].log.size_bytes for node in cluster.alive()]
                largest = max(largest, *sizes)
        assert largest < (128 + 2 * 64) * KIB

    play(story)


def test_a_cluster_that_trimmed_survives_the_loss_of_power_everywhere() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client, retention_bytes="128KiB", segment_bytes="64KiB")
        await append(client, 60)
        await trio.sleep(12)
        before = starts(cluster, group)
        assert min(before) > 0
        for node in cluster.nodes.values():
            await node.crash(power=True)
        for node in cluster.nodes.values():
            node.start()
        await append(client, 1)
        assert all(now >= was for now, was in zip(starts(cluster, group), before, strict=True))

    play(story)


def test_a_consumer_that_was_overtaken_is_told_the_valid_range_or_goes_on_by_choice() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client)
        await append(client, 60)
        await client.admin.alter_topic(TOPIC, {"retention_bytes": "128KiB"})
        await trio.sleep(12)
        leader = cluster.leader_of(group)
        assert leader is not None
        log = leader.groups[group].log

        with pytest.raises(OffsetOutOfRangeError) as refused:
            async with client.consumer(TOPIC, start=3) as consumer:
                await anext(aiter(consumer))
        assert (refused.value.log_start, refused.value.log_end) == (
            log.start_offset,
            log.end_offset,
        )
        async with client.consumer(TOPIC, start=3, on_trimmed="earliest") as consumer:
            record = await anext(aiter(consumer))
        assert record.offset == log.start_offset

    play(story)


def test_a_consumer_that_is_overtaken_while_it_reads_leaps_over_what_is_gone() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client)
        await append(client, 20)
        seen: list[int] = []
        async with client.consumer(
            TOPIC, start=0, credit_bytes=64 * KIB, on_trimmed="earliest"
        ) as consumer:
            records = aiter(consumer)
            while len(seen) < 3:
                seen.append((await anext(records)).offset)
            await append(client, 60)
            await client.admin.alter_topic(TOPIC, {"retention_bytes": "128KiB"})
            await trio.sleep(12)
            start = max(starts(cluster, group))
            assert start > 20
            with trio.fail_after(20):
                while seen[-1] < start:
                    seen.append((await anext(records)).offset)
        assert seen == sorted(set(seen))
        leap = next(n for n in range(1, len(seen)) if seen[n] > seen[n - 1] + 2)
        assert seen[leap] >= min(starts(cluster, group))

    play(story)


def test_a_follower_that_was_away_for_a_moment_catches_up() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client, retention_bytes="256KiB")
        await append(client, 5)
        leader = cluster.leader_of(group)
        assert leader is not None
        away = next(node for node in cluster.alive() if node is not leader)
        await away.crash(power=False)
        await append(client, 10)
        away.start()
        with trio.fail_after(30):
            while (
                NodeId(away.node) not in {n.node for n in cluster.alive() if group in n.groups}
                or away.groups[group].commit_offset < leader.groups[group].commit_offset
            ):
                await trio.sleep(0.1)

    play(story)


def test_a_trim_moves_the_start_of_every_replica_and_nothing_else() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client)
        await append(client, 20)

        assert await client.admin.trim_partition(TOPIC, 0, 7) == 7
        assert await client.admin.trim_partition(TOPIC, 0, 5) == 7  # Long gone.
        await append(client, 1)
        await trio.sleep(1)

        assert [node.groups[group].log_start for node in cluster.alive()] == [7, 7, 7]
        for node in cluster.nodes:
            held = await client.admin.offsets(TOPIC, 0, from_replica=node)
            assert held.log_start == 7
        with pytest.raises(OffsetOutOfRangeError, match="cannot trim before offset 1000"):
            await client.admin.trim_partition(TOPIC, 0, 1000)
        async with client.consumer(TOPIC, start="earliest") as consumer:
            assert (await anext(aiter(consumer))).offset == 7
        with pytest.raises(OffsetOutOfRangeError):
            async with client.consumer(TOPIC, start=6) as consumer:
                await anext(aiter(consumer))

    play(story)


def test_a_trim_by_time_keeps_what_was_appended_then_or_later() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await make_topic(client)
        await append(client, 5)
        await trio.sleep(10)
        between_ms = 1_700_000_000_000 + int(trio.current_time() * 1000) - 5_000
        await append(client, 1)
        first_of_later = (await client.admin.offsets(TOPIC, 0)).data_end - 1

        between = datetime.fromtimestamp(between_ms / 1000, UTC)
        assert await client.admin.trim_partition(TOPIC, 0, between) == first_of_later

    play(story)


def test_a_start_at_a_time_that_was_trimmed_is_the_first_record_that_is_left() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await make_topic(client)
        await append(client, 20)
        await client.admin.trim_partition(TOPIC, 0, 7)
        long_ago = datetime(2000, 1, 1, tzinfo=UTC)

        assert (await client.admin.offsets(TOPIC, 0, at=long_ago)).time_offset == 7
        async with client.consumer(TOPIC, start=long_ago) as consumer:
            assert (await anext(aiter(consumer))).offset == 7

    play(story)


def test_a_time_at_and_after_which_nothing_was_appended_is_that_of_the_end() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await make_topic(client)
        await append(client, 3)

        found = await client.admin.offsets(TOPIC, 0, at=datetime(2100, 1, 1, tzinfo=UTC))

        assert found.time_offset == found.commit_offset

    play(story)


def test_what_was_trimmed_stays_trimmed_when_another_broker_leads() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        group = await make_topic(client)
        await append(client, 20)
        await client.admin.trim_partition(TOPIC, 0, 7)
        leader = cluster.leader_of(group)
        assert leader is not None
        await leader.crash(power=True)
        await append(client, 1)
        assert (await client.admin.offsets(TOPIC, 0)).log_start == 7

    play(story)
