"""The client against three real brokers, under asyncio and under trio."""

from __future__ import annotations

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import cast

import anyio
import msgspec
import pytest

from logd.cli.local_cluster import LocalCluster
from logd.errors import (
    OffsetOutOfRangeError,
    PartialAppendError,
    RecordTooLargeError,
    TopicExistsError,
    UnexpectedOffsetError,
    UnknownTopicError,
    UsageError,
    WouldBlock,
)
from logd.limits import BATCH_BYTES_MAX, MIB, RECORD_BYTES_MAX
from logd.types import NodeId
from logd.wire.messages import TopicInfo
from logd_client import AckRange, Client, Producer, Record, connect, sync
from tests.process.harness import POLL_S, hand_over

pytestmark = [pytest.mark.process, pytest.mark.anyio]

READ_TIMEOUT_S = 20.0
PADDING = bytes(2_000)


async def create(client: Client, *, partitions: int = 1) -> str:
    topic = f"client-{uuid.uuid4()}"
    await client.admin.create_topic(topic, partitions=partitions, replicas=3)
    return topic


async def append_at_the_end(client: Client, producer: Producer, topic: str, value: bytes) -> int:
    """Where the log ended.  That is further on whenever another leader takes over, which notes it
    in the log."""
    with anyio.fail_after(READ_TIMEOUT_S):
        while True:
            end = (await client.admin.describe_partition(topic, 0)).log_end
            with contextlib.suppress(UnexpectedOffsetError):
                ack = await producer.append(value, partition=0, expected_offset=end)
                assert ack.offset == end
                return end


async def read(client: Client, topic: str, count: int, **options: object) -> list[Record]:
    """The next ``count`` records, and then no more."""
    records: list[Record] = []
    with anyio.fail_after(READ_TIMEOUT_S):
        async with client.consumer(topic, **options) as consumer:  # type: ignore[arg-type]
            async for record in consumer:
                records.append(record)
                if len(records) == count:
                    break
    return records


async def test_records_come_back_with_key_headers_and_time(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    headers = (("trace", b"\x00\xff"), ("trace", b"again"), ("empty", b""))
    async with connect(cluster.bootstrap) as client:
        topic = await create(client, partitions=3)
        async with client.producer(topic) as producer:
            full = await producer.append(b"value", key=b"k", headers=headers, timestamp_ms=1234)
            tombstone = await producer.append(None, key=b"k")
            empty = await producer.append(b"", key=b"k")
        first, second, third = await read(client, topic, 3, start="earliest")

    assert (full.topic, full.durability) == (topic, "synced")
    assert full.partition == tombstone.partition == empty.partition
    assert first == Record(topic, full.partition, full.offset, 1234, b"k", b"value", headers)
    assert (second.offset, second.key, second.value) == (tombstone.offset, b"k", None)
    assert (third.offset, third.value, third.headers) == (empty.offset, b"", ())


@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_many_records_keep_their_order(
    cluster: LocalCluster, anyio_backend: object, compression: str
) -> None:
    values = [b"%d " % number * 20 for number in range(20_000)]
    async with connect(cluster.bootstrap) as client:
        topic = await create(client, partitions=2)
        async with client.producer(topic, compression=compression) as producer:  # type: ignore[arg-type]
            first = await producer.append_many(values, partition=1)
            second = await producer.append_many(values, key=b"all the same")
        records = await read(client, topic, len(values), start="earliest", partitions=[1])
        everything = await read(client, topic, 2 * len(values), start="earliest")

    assert sum(part.count for part in first) == sum(part.count for part in second) == len(values)
    assert [record.value for record in records[: len(values)]] == values
    offsets = [part.base_offset + at for part in first for at in range(part.count)]
    assert [record.offset for record in records] == offsets
    keyed = [record.value for record in everything if record.key == b"all the same"]
    assert keyed == values


async def test_a_key_always_goes_to_the_same_partition(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    keys = [b"key %d" % (number % 50) for number in range(1_000)]
    async with connect(cluster.bootstrap) as client:
        topic = await create(client, partitions=5)
        async with client.producer(topic) as producer:
            acks = await producer.append_many(keys, keys=keys)
            alone = {key: (await producer.append(b"", key=key)).partition for key in keys[:50]}
        records = await read(client, topic, len(keys) + 50, start="earliest")

    places = [(ack.partition, ack.base_offset + at) for ack in acks for at in range(ack.count)]
    key_at = {(record.partition, record.offset): record.key for record in records}
    assert [key_at[place] for place in places] == keys
    assert all(record.partition == alone[record.key] for record in records if record.key)
    assert len(set(alone.values())) > 1


async def test_an_append_at_an_expected_offset_happens_there_or_not_at_all(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client:
        topic = await create(client)
        async with client.producer(topic) as producer:
            first = await producer.append(b"first")
            second = await append_at_the_end(client, producer, topic, b"second")
            with pytest.raises(UnexpectedOffsetError) as refused:
                await producer.append(b"late", partition=0, expected_offset=second)
            third = await producer.append(b"third")
        records = await read(client, topic, 3, start="earliest")

    assert refused.value.may_have_applied is False
    assert [(record.offset, record.value) for record in records] == [
        (first.offset, b"first"),
        (second, b"second"),
        (third.offset, b"third"),
    ]


async def test_a_record_over_the_limit_fails_alone(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    too_large = bytes(RECORD_BYTES_MAX + 1)
    async with connect(cluster.bootstrap) as client:
        topic = await create(client)
        async with client.producer(topic) as producer:
            with pytest.raises(PartialAppendError) as partial:
                await producer.append_many([b"a", too_large, b"b", bytes(RECORD_BYTES_MAX)])
            with pytest.raises(RecordTooLargeError):
                await producer.append(too_large)
        records = await read(client, topic, 3, start="earliest")

    acks = cast(tuple[AckRange, ...], partial.value.acks)
    assert sum(ack.count for ack in acks) == 3
    ((start, end, error),) = partial.value.failures
    assert (start, end) == (1, 2)
    assert isinstance(error, RecordTooLargeError)
    assert [record.value for record in records] == [b"a", b"b", bytes(RECORD_BYTES_MAX)]


async def test_queued_records_are_acknowledged_in_order_and_a_full_buffer_refuses(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client:
        topic = await create(client)
        async with client.producer(topic, buffer_bytes=4 * MIB) as producer:
            values = [b"%d" % number for number in range(1_000)]
            tickets = [producer.append_nowait(value) for value in values]
            acks = [await ticket for ticket in tickets]
            large = [bytes(MIB - 1000)] * 4
            queued = [producer.append_nowait(value) for value in large]
            with pytest.raises(WouldBlock):
                producer.append_nowait(bytes(MIB - 1000))
            await producer.flush()
            assert all(ticket.is_done for ticket in queued)
            acks += [await ticket for ticket in queued]
            acks.append(await producer.append(b"there is room again"))
        records = await read(client, topic, 1_005, start="earliest")

    assert [record.value for record in records] == [*values, *large, b"there is room again"]
    assert [record.offset for record in records] == [ack.offset for ack in acks]


async def test_latest_means_what_is_committed_from_now_on(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client:
        topic = await create(client)
        async with client.producer(topic) as producer:
            await producer.append(b"old")
            async with client.consumer(topic, start="latest") as consumer:
                new = await producer.append(b"new")
                with anyio.fail_after(READ_TIMEOUT_S):
                    record = await consumer.next_record()

    assert record is not None
    assert (record.offset, record.value) == (new.offset, b"new")


async def test_a_consumer_starts_at_an_offset_or_at_a_time(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client:
        topic = await create(client)
        async with client.producer(topic) as producer:
            old = await producer.append(b"old")
            # Append times are whole milliseconds: the next one must be a later one.
            await anyio.sleep(0.02)
            new = await producer.append(b"new")
            between = datetime.fromtimestamp(new.append_time_ms / 1000, UTC)
            by_offset = await read(client, topic, 1, start=new.offset)
            by_time = await read(client, topic, 1, start=between)
            long_ago = await read(client, topic, 1, start=between - timedelta(days=1))
        with pytest.raises(OffsetOutOfRangeError) as refused:
            await read(client, topic, 1, start=new.offset + 100)
        known = await client.admin.describe_partition(topic, 0)

    assert by_offset[0].value == by_time[0].value == b"new"
    assert long_ago[0].value == b"old"
    # Another leader that takes over in between notes it in the log.
    assert new.offset < refused.value.log_end <= known.log_end
    assert old.append_time_ms < new.append_time_ms


async def test_a_consumer_with_a_stop_ends_behind_what_is_committed_on_entering(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    values = [b"%d" % number for number in range(3_000)]
    async with connect(cluster.bootstrap) as client:
        topic = await create(client, partitions=3)
        async with client.producer(topic) as producer:
            await producer.append_many(values[:2_000], partition=0)
            await producer.append_many(values[2_000:], partition=2)  # Partition 1 is empty.
            with anyio.fail_after(READ_TIMEOUT_S):
                async with client.consumer(topic, start="earliest", stop="latest") as consumer:
                    await producer.append(b"too late", partition=0)
                    found = [record async for record in consumer]
                    assert await consumer.next_batch() is None
        assert sorted(record.value or b"" for record in found) == sorted(values)
        offsets = [record.offset for record in found if record.partition == 0]
        part = await read(client, topic, -1, start={0: offsets[5]}, stop={0: offsets[1_005]})
        assert [record.offset for record in part] == offsets[5:1_005]
        for broker in cluster.brokers:
            await wait_until_known(client, topic, broker.node_id, offsets[-1])
            options = {"from_replica": broker.node_id, "partitions": [0]}
            replica = await read(client, topic, -1, start="earliest", stop="latest", **options)
            assert len(replica) in (2_000, 2_001)
        with pytest.raises(UsageError, match=r"stop names the partitions \[0\], those that are"):
            await read(client, topic, -1, stop={0: 5})


async def wait_until_known(client: Client, topic: str, node: NodeId, offset: int) -> None:
    """A follower hears a moment later what is committed."""
    with anyio.fail_after(READ_TIMEOUT_S):
        while (await client.admin.offsets(topic, 0, from_replica=node)).data_end <= offset:
            await anyio.sleep(POLL_S)


async def test_every_replica_serves_the_same_records(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    values = [b"%d" % number for number in range(500)]
    async with connect(cluster.bootstrap) as client:
        topic = await create(client)
        async with client.producer(topic) as producer:
            await producer.append_many(values)
        replicas = [
            await read(client, topic, len(values), start="earliest", from_replica=broker.node_id)
            for broker in cluster.brokers
        ]

    assert replicas[0] == replicas[1] == replicas[2]
    assert [record.value for record in replicas[0]] == values


async def test_topics_are_created_described_and_deleted_once(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client:
        topic = await create(client, partitions=6)
        there = await client.admin.create_topic(topic, partitions=7, exist_ok=True)
        with pytest.raises(TopicExistsError):
            await client.admin.create_topic(topic)
        described = await client.admin.describe_topic(topic)
        assert whoever_leads(there) == whoever_leads(described)
        await client.admin.delete_topic(topic)
        with pytest.raises(UnknownTopicError):
            await client.admin.describe_topic(topic)

    leaders = [partition.replicas[0] for partition in described.partitions]
    assert sorted(leaders) == [1, 1, 2, 2, 3, 3]


def whoever_leads(topic: TopicInfo) -> TopicInfo:
    """Leaders change, and are heard of by one broker before the other."""
    partitions = [
        msgspec.structs.replace(partition, leader=None, term=0) for partition in topic.partitions
    ]
    return msgspec.structs.replace(topic, partitions=partitions)


async def test_a_producer_and_a_consumer_follow_their_leader(
    cluster: LocalCluster, anyio_backend: object
) -> None:
    async with connect(cluster.bootstrap) as client:
        topic = await create(client)
        values = [b"%d" % number for number in range(60)]
        async with (
            client.producer(topic) as producer,
            client.consumer(topic, start="earliest") as consumer,
        ):
            for number, value in enumerate(values):
                if number % 20 == 10:
                    await hand_over(client, topic, 0, cluster.brokers[number // 20].node_id)
                await producer.append(value)
            with anyio.fail_after(READ_TIMEOUT_S):
                records = [await consumer.next_record() for _ in values]

    assert [record and record.value for record in records] == values


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_threads_append_without_waiting_each_in_its_own_order(
    cluster: LocalCluster, backend: str
) -> None:
    """Whatever they call in between, and however little room there is."""
    topic = f"threads-{backend}"
    count = 3_000
    with sync.connect(cluster.bootstrap, backend=backend) as client:
        client.admin.create_topic(topic, partitions=1, replicas=3)

        def append(name: int) -> None:
            for number in range(count):
                value = b"%d %d" % (name, number) + PADDING
                if number % 500 == 0:
                    producer.append(value)
                elif number % 300 == 0:
                    producer.append_many([value])
                else:
                    (producer.enqueue if number % 2 else patiently)(value)

        def patiently(value: bytes) -> None:
            with contextlib.suppress(WouldBlock):
                producer.append_nowait(value)
                return
            producer.enqueue(value)

        with (
            client.producer(topic, buffer_bytes=BATCH_BYTES_MAX) as producer,
            ThreadPoolExecutor() as threads,
        ):
            for done in [threads.submit(append, name) for name in range(3)]:
                done.result()
        with client.consumer(topic, start="earliest") as consumer:
            values = [record.value for _, record in zip(range(3 * count), consumer, strict=False)]

    for name in range(3):
        own = [value for value in values if value and value.startswith(b"%d " % name)]
        assert own == [b"%d %d" % (name, number) + PADDING for number in range(count)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_blocking_client_has_the_same_verbs(cluster: LocalCluster, backend: str) -> None:
    topic = f"blocking-{backend}"
    with sync.connect(cluster.bootstrap, backend=backend) as client:
        client.admin.create_topic(topic, partitions=1, replicas=3)
        with client.producer(topic, compression="zstd") as producer:
            ack = producer.append(b"one", key=b"k", headers=[("h", b"1")])
            ticket = producer.append_nowait(b"two")
            acks = producer.append_many([b"three"] * 1_000)
            with pytest.raises(UnexpectedOffsetError):
                producer.append(b"no", partition=0, expected_offset=ack.offset)
        assert sum(part.count for part in acks) == 1_000
        with client.consumer(topic, start="earliest") as consumer:
            records = [record for _, record in zip(range(1_002), consumer, strict=False)]
        with client.consumer(topic, start=ack.offset) as consumer:
            assert next(consumer.batches()).values[0] == b"one"
        with client.consumer(topic, start="earliest", stop="latest") as consumer:
            assert len(list(consumer)) == 1_002

    assert [record.value for record in records[:3]] == [b"one", b"two", b"three"]
    assert [record.offset for record in records[:2]] == [ack.offset, ticket.result().offset]
    assert records[0].headers == (("h", b"1"),)
