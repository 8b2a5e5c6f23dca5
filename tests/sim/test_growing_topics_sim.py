"""A topic gets more partitions while it is written and read."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trio

from logd.broker import admin
from logd.errors import InvalidConfigError, InvalidPartitionError, RequestTimeoutError
from logd.types import METADATA_GROUP
from logd.wire.messages import AlterTopicRequest
from logd_client import Client
from logd_client.consumer_options import Start
from logd_client.partitioner import partition_for_key
from logd_client.routing import METADATA_AGE_S
from tests.sim import stories
from tests.sim.cluster import SimCluster
from tests.sim.env import BlockingConditions
from tests.sim.stories import connected

pytestmark = pytest.mark.sim

PARTITIONS = 5
LEARNT_S = METADATA_AGE_S + 5
KEYS = [b"k%d" % number for number in range(40)]


async def grow(client: Client) -> None:
    await client.admin.alter_topic("t", partitions=PARTITIONS)


@pytest.mark.parametrize("start", ["earliest", "latest", 2, datetime(1980, 1, 1, tzinfo=UTC)])
def test_a_consumer_reads_all_of_the_partitions_that_are_added_later(start: Start) -> None:
    """Also what was written there before it knew of them."""

    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        async with client.producer("t") as producer:
            await producer.append(b"from the start")
        async with connected(cluster) as reading, reading.consumer("t", start=start) as consumer:
            await grow(client)
            async with client.producer("t") as producer:
                for number in range(3 * PARTITIONS):
                    await producer.append(b"%d" % number, partition=number % PARTITIONS)
            found: set[bytes | None] = set()
            async for record in consumer:
                found.add(record.value)
                if len(found - {b"from the start"}) == 3 * PARTITIONS:
                    break
            assert (b"from the start" in found) == (start not in ("latest", 2))

    stories.play(story, patience_s=LEARNT_S + 60)


def test_who_goes_on_where_it_was_reads_the_others_too_also_those_of_later() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=2, replicas=3)
        async with client.producer("t") as producer:
            done = await producer.append(b"done", partition=1)
            await producer.append(b"to do", partition=1)
            await producer.append(b"not begun", partition=0)
        kept = {1: done.offset + 1}
        async with (
            connected(cluster) as reading,
            reading.consumer("t", start=kept, start_of_others="earliest") as consumer,
        ):
            await grow(client)
            async with client.producer("t") as producer:
                await producer.append(b"later", partition=PARTITIONS - 1)
            found: set[tuple[int, bytes | None]] = set()
            while len(found) < 3:
                record = await consumer.next_record()
                assert record is not None
                found.add((record.partition, record.value))

        assert found == {(0, b"not begun"), (1, b"to do"), (PARTITIONS - 1, b"later")}

    stories.play(story, patience_s=LEARNT_S + 60)


def test_a_consumer_of_some_partitions_reads_no_others() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=2, replicas=3)
        async with (
            connected(cluster) as reading,
            reading.consumer("t", partitions=[0, 1]) as consumer,
        ):
            await grow(client)
            await trio.sleep(LEARNT_S)
            async with client.producer("t") as producer:
                await producer.append(b"not asked for", partition=2)
                await producer.append(b"asked for", partition=1)
            async for record in consumer:
                assert record.value == b"asked for"
                break

    stories.play(story, patience_s=LEARNT_S + 60)


def test_a_producer_uses_the_partitions_that_are_added_later() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        async with connected(cluster) as writing, writing.producer("t") as producer:
            await grow(client)
            await trio.sleep(LEARNT_S)
            assert {(await producer.append(b"")).partition for _ in range(2 * PARTITIONS)} == set(
                range(PARTITIONS)
            )
            for key in KEYS:
                ack = await producer.append(b"", key=key)
                assert ack.partition == partition_for_key(key, PARTITIONS)

    stories.play(story, patience_s=LEARNT_S + 60)


def test_a_producer_asks_before_it_refuses_a_partition() -> None:
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        async with connected(cluster) as writing, writing.producer("t") as producer:
            await grow(client)
            assert (await producer.append(b"", partition=3)).partition == 3
            (range_,) = await producer.append_many([b"1", b"2"], partition=4)
            assert range_.partition == 4
            with pytest.raises(InvalidPartitionError, match="expected 0 to 4"):
                await producer.append(b"", partition=PARTITIONS)

    stories.play(story)


def test_who_holds_a_topic_that_was_made_anew_with_more_partitions_is_told_that_it_is_gone() -> (
    None
):
    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        async with connected(cluster) as writing, writing.producer("t") as producer:
            await producer.append(b"")
            await client.admin.delete_topic("t")
            await client.admin.create_topic("t", partitions=PARTITIONS, replicas=3)
            await writing.admin.describe_topic("t")
            with pytest.raises(InvalidPartitionError):
                await producer.append(b"", partition=3)

    stories.play(story)


def test_no_partitions_are_added_if_the_options_that_were_asked_for_with_them_are_refused() -> None:
    """A refusal says that nothing was changed."""

    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)

        with pytest.raises(InvalidConfigError, match="retention_ms='soon'"):
            await client.admin.alter_topic("t", {"retention_ms": "soon"}, partitions=PARTITIONS)

        assert len((await client.admin.describe_topic("t")).partitions) == 1

    stories.play(story)


def test_who_was_given_partitions_but_not_the_options_is_not_told_that_nothing_changed() -> None:
    """The options were fine when they were asked for; another client's came in between."""

    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)

        async def alter() -> None:
            with pytest.raises(InvalidConfigError, match="is below segment_bytes") as refusal:
                await client.admin.alter_topic(
                    "t", {"retention_bytes": "1MiB"}, partitions=PARTITIONS
                )
            assert refusal.value.may_have_applied

        async with connected(cluster) as other, trio.open_nursery() as nursery:
            await other.admin.describe_topic("t")
            nursery.start_soon(alter)
            nursery.start_soon(other.admin.alter_topic, "t", {"segment_bytes": "2MiB"})

        assert len((await client.admin.describe_topic("t")).partitions) == PARTITIONS

    stories.play(story)


def test_partitions_and_options_together_take_no_longer_than_was_allowed_for_both() -> None:
    """With disks so slow that each of the two commands takes half a second."""
    timeout_ms = 800

    async def story(cluster: SimCluster, client: Client) -> None:
        await client.admin.create_topic("t", partitions=1, replicas=3)
        controller = cluster.leader_of(METADATA_GROUP)
        assert controller is not None
        assert controller.broker is not None
        for node in cluster.nodes.values():
            node.set_blocking(
                BlockingConditions(latency_s_min=0.5, latency_s_mean=0.0, spike_probability=0.0)
            )
        request = AlterTopicRequest(
            name="t", config={"retention_ms": "7d"}, partitions=PARTITIONS, timeout_ms=timeout_ms
        )

        began = trio.current_time()
        with pytest.raises(RequestTimeoutError):
            await admin.alter_topic(controller.broker, request)

        assert trio.current_time() - began == pytest.approx(timeout_ms / 1000, abs=0.01)

    stories.play(story)
