"""The clients of one run: every way to write and to read, and what each of them saw.

All go through the client library, on machines of their own that never crash.  What they are
told goes into the ``History``; an exception that the library does not document ends the run.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import trio

from logd.errors import (
    LogdError,
    OffsetOutOfRangeError,
    PartialAppendError,
    TopicExistsError,
    UnexpectedOffsetError,
    UnknownTopicError,
)
from logd.metadata.topic_config import parse_options
from logd.types import TopicPartition
from logd_client import Client, Producer
from logd_client.delivery import AckRange
from logd_client.partitioner import partition_for_key
from logd_client.records import Record
from tests.sim import stories
from tests.sim.cluster import SimCluster
from tests.sim.history import AppendId, History
from tests.sim.keyed_workload import KEYED_TOPIC, NAME, PROGRESS_KEY, KeyedWorkload
from tests.sim.settings import Settings

TOPIC = "t"
CONDITIONAL_TOPIC = "c"
"""Of one partition; what is appended to it says which offset it expects."""

SLOW_PAUSE_S = 2.0
"""Between two calls of a producer once enough was written."""

TOPICS_MADE_MAX = 3
KEYED_WRITERS = 2
RETRY_S = 0.2
LOOK_FOR_REPLICA_S = 10.0


class _TopicState(Enum):
    EXISTS = "exists"
    DELETED = "deleted"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Reader:
    """One consumer over all its lives, and how far it has got."""

    name: str
    topic: str
    positions: dict[int, int] = field(default_factory=dict)

    def has_reached(self, ends: dict[TopicPartition, int]) -> bool:
        return all(
            self.positions[where.partition] >= end
            for where, end in ends.items()
            if where.topic == self.topic and where.partition in self.positions
        )


class Workload:
    """Starts the clients and keeps what they are told."""

    def __init__(self, cluster: SimCluster, settings: Settings) -> None:
        self.cluster = cluster
        self.settings = settings
        self.history = History(trio.current_time)
        self.readers: list[Reader] = []
        self.is_over = False
        self.wrong: list[str] = []
        """What was answered and cannot be true, apart from the history."""
        self._chance = random.Random(f"{cluster.seed}:values")
        self._values = 0
        self._topics: dict[str, _TopicState] = {}
        self._keyed = KeyedWorkload(self)
        if settings.compaction and settings.has_good_clocks:
            tombstone_ms = parse_options(dict(settings.compaction)).tombstone_ms
            self.history.tombstones_last_s = tombstone_ms / 1000

    @property
    def partitions(self) -> list[TopicPartition]:
        """All that is written to and read in the end."""
        found = [TopicPartition(TOPIC, number) for number in range(self.settings.partitions)]
        if self.settings.conditional_writers:
            found.append(TopicPartition(CONDITIONAL_TOPIC, 0))
        if self.settings.compaction:
            found.append(TopicPartition(KEYED_TOPIC, 0))
        return found

    def is_trimmed(self, topic: str) -> bool:
        """Whether its logs may lose their beginning."""
        if topic == KEYED_TOPIC:
            return dict(self.settings.compaction)["cleanup"] != "compact"
        return topic == TOPIC and bool(self.settings.retention)

    async def write(self, writers: trio.Nursery) -> None:
        """Start everybody who writes or administrates; they end soon after ``is_over``."""
        for number in range(self.settings.producers):
            writers.start_soon(self._produce, f"producer{number}")
        for number in range(self.settings.conditional_writers):
            writers.start_soon(self._compare_and_append, f"conditional{number}")
        for number in range(KEYED_WRITERS if self.settings.compaction else 0):
            writers.start_soon(self._keyed.write, f"keyed{number}")
        for number in range(self.settings.admins):
            writers.start_soon(self._administrate, f"admin{number}")

    async def read(self, readers: trio.Nursery, replicas: Sequence[int]) -> None:
        """Start everybody who reads, until cancelled.  ``replicas`` hold the first partition."""
        for number in range(self.settings.consumers):
            readers.start_soon(self._consume, self._reader(f"consumer{number}", TOPIC))
        for number in range(self.settings.replica_readers):
            name = f"replica_reader{number}"
            readers.start_soon(self._consume, self._reader(name, TOPIC), True)
        for number in range(self.settings.pinned_readers):
            reader = self._reader(f"pinned_reader{number}", TOPIC, partitions=1)
            replica = replicas[self.cluster.seed % len(replicas)]
            readers.start_soon(self._follow_replica, reader, replica)
        if self.settings.conditional_writers:
            reader = self._reader("consumer_of_c", CONDITIONAL_TOPIC)
            readers.start_soon(self._consume, reader)
        if self.settings.compaction:
            readers.start_soon(self._consume, self._reader("consumer_of_k", KEYED_TOPIC))
            reader = self._reader("replica_reader_of_k", KEYED_TOPIC)
            readers.start_soon(self._consume, reader, True)
            readers.start_soon(self._keyed.reread, "rereader")

    @contextlib.asynccontextmanager
    async def connected(self, host: str | None = None, **options: object) -> AsyncIterator[Client]:
        """A client, as soon as there is a broker to reach."""
        async with stories.connected(self.cluster, host, **options) as client:
            yield client

    # --- appending ------------------------------------------------------------------------------

    def value(self, client: str) -> bytes:
        self._values += 1
        filler = "x" * self._chance.choice([0, 0, 20, 400])
        return f"{client}-{self._values}-{filler}".encode()

    async def _produce(self, name: str) -> None:
        """One call after another, some at a time, each of some kind, until the run is over."""
        chance = random.Random(f"{self.cluster.seed}:{name}")
        calls = (self._append_one, self._append_one, self._append_many, self._append_nowait)
        limiter = trio.Semaphore(chance.choice([1, 4]))
        async with (
            self.connected() as client,
            self.open_producer(client, TOPIC, chance) as producer,
            trio.open_nursery() as nursery,
        ):
            while not self.is_over:
                await limiter.acquire()
                call = chance.choice(calls)

                async def one(
                    call: Callable[[str, Producer, random.Random], Awaitable[None]] = call,
                ) -> None:
                    await call(name, producer, chance)
                    limiter.release()

                nursery.start_soon(one)
                await trio.sleep(chance.expovariate(1.0) * self.pause_s())

    @contextlib.asynccontextmanager
    async def open_producer(
        self, client: Client, topic: str, chance: random.Random
    ) -> AsyncIterator[Producer]:
        """An open producer, as soon as the cluster knows the topic and has an id for it."""
        async with contextlib.AsyncExitStack() as stack:
            producer: Producer | None = None
            while producer is None:
                made = client.producer(
                    topic,
                    batches_in_flight=chance.choice([1, 2, 5]),
                    batch_bytes=chance.choice([1024, 256 * 1024]),
                    delivery_timeout_ms=chance.choice([1_000, 20_000]),
                )
                try:
                    producer = await stack.enter_async_context(made)
                except LogdError:
                    await trio.sleep(RETRY_S)
            yield producer

    def pause_s(self) -> float:
        if len(self.history.appends) > self.settings.appends:
            return SLOW_PAUSE_S
        return self.settings.pause_s

    def _invoke(
        self, name: str, partition: int | None, key: bytes | None
    ) -> tuple[AppendId, bytes, int]:
        if partition is None:
            assert key is not None
            partition = partition_for_key(key, self.settings.partitions)
        value = self.value(name)
        appended = self.history.invoke(name, TopicPartition(TOPIC, partition), value)
        return appended, value, partition

    def _where(self, chance: random.Random) -> tuple[int | None, bytes | None]:
        """A partition, or a key that chooses one."""
        if chance.random() < 0.3:
            return None, b"key%d" % chance.randrange(20)
        return chance.randrange(self.settings.partitions), None

    async def _append_one(self, name: str, producer: Producer, chance: random.Random) -> None:
        partition, key = self._where(chance)
        appended, value, expected = self._invoke(name, partition, key)
        try:
            ack = await producer.append(value, partition=partition, key=key)
        except LogdError as error:
            self.failed(appended, error)
        else:
            self.acknowledged(appended, expected, ack.partition, ack.offset, ack.durability)

    async def _append_nowait(self, name: str, producer: Producer, chance: random.Random) -> None:
        queued = []
        for _ in range(chance.randint(2, 6)):
            partition, key = self._where(chance)
            appended, value, expected = self._invoke(name, partition, key)
            try:
                ticket = producer.append_nowait(value, partition=partition, key=key)
            except LogdError as error:
                self.failed(appended, error)
            else:
                queued.append((appended, expected, ticket))
        for appended, expected, ticket in queued:
            try:
                ack = await ticket
            except LogdError as error:
                self.failed(appended, error)
            else:
                self.acknowledged(appended, expected, ack.partition, ack.offset, ack.durability)

    async def _append_many(self, name: str, producer: Producer, chance: random.Random) -> None:
        """Of one partition, or each where its key says."""
        partition, key = self._where(chance)
        count = chance.randint(2, 12)
        keys = None if key is None else [b"key%d" % chance.randrange(20) for _ in range(count)]
        invoked = [
            self._invoke(name, partition, None if keys is None else keys[number])
            for number in range(count)
        ]
        values = [value for _, value, _ in invoked]
        acks: tuple[AckRange, ...]
        failures: tuple[tuple[int, int, LogdError], ...] = ()
        try:
            acks = await producer.append_many(values, partition=partition, keys=keys)
        except PartialAppendError as error:
            acks, failures = error.acks, error.failures  # type: ignore[assignment]
        except LogdError as error:
            acks, failures = (), ((0, count, error),)
        failed = {n: error for start, end, error in failures for n in range(start, end)}
        acked = iter(
            [
                (ack.partition, ack.base_offset + n, ack.durability)
                for ack in acks
                for n in range(ack.count)
            ]
        )
        for number, (appended, _, expected) in enumerate(invoked):
            if number in failed:
                self.failed(appended, failed[number])
            else:
                self.acknowledged(appended, expected, *next(acked))
        assert next(acked, None) is None, "more was acknowledged than was appended"

    def acknowledged(
        self,
        appended: AppendId,
        expected_partition: int,
        partition: int,
        offset: int,
        durability: str,
    ) -> None:
        append = self.history.appends[appended]
        if durability != "synced" and durability != self._durability_of(append.partition.topic):
            self.wrong.append(f"{append.value!r} acknowledged as {durability}")
        if partition != expected_partition:
            self.wrong.append(
                f"{append.value!r} acknowledged in partition {partition}, not {expected_partition}"
            )
        self.history.acknowledge(appended, offset)
        where = str(append.partition)
        value = append.value[:24]
        self.cluster.trace.note(append.client, "acknowledged", at=f"{where}@{offset}", value=value)

    def _durability_of(self, topic: str) -> str:
        return "synced" if topic == CONDITIONAL_TOPIC else self.settings.durability

    def failed(self, appended: AppendId, error: LogdError) -> None:
        append = self.history.appends[appended]
        if isinstance(error, UnexpectedOffsetError) and append.expected_offset is not None:
            self.history.refuse_condition(appended)
        elif not error.may_have_applied:
            self.history.refuse(appended)
        self.cluster.trace.note(
            append.client,
            "append_failed",
            value=append.value[:24],
            error=type(error).__name__,
            may_have_applied=error.may_have_applied,
        )

    async def _compare_and_append(self, name: str) -> None:
        """Several of these want the same offsets: each has one winner at most."""
        chance = random.Random(f"{self.cluster.seed}:{name}")
        async with (
            self.connected() as client,
            self.open_producer(client, CONDITIONAL_TOPIC, chance) as producer,
        ):
            end = 0
            while not self.is_over:
                expected = end
                if chance.random() < 0.2 and end:
                    expected = chance.randrange(end)  # Long taken, most likely.
                where = TopicPartition(CONDITIONAL_TOPIC, 0)
                value = self.value(name)
                appended = self.history.invoke(name, where, value, expected_offset=expected)
                try:
                    ack = await producer.append(value, partition=0, expected_offset=expected)
                except LogdError as error:
                    self.failed(appended, error)
                    with contextlib.suppress(LogdError):
                        end = await self._data_end(client, where)
                else:
                    self.acknowledged(appended, 0, ack.partition, ack.offset, ack.durability)
                    end = ack.offset + 1
                await trio.sleep(chance.expovariate(1.0) * 2 * self.pause_s())

    async def make_progress(self, client: Client) -> None:
        """A healed cluster accepts an append in every partition."""
        for where in self.partitions:
            chance = random.Random(f"{self.cluster.seed}:progress")
            async with self.open_producer(client, where.topic, chance) as producer:
                while True:
                    value = self.value("progress")
                    is_keyed = where.topic == KEYED_TOPIC
                    key = PROGRESS_KEY if is_keyed else None
                    headers = [(NAME, value)] if is_keyed else []
                    appended = self.history.invoke("progress", where, value, key=key)
                    try:
                        ack = await producer.append(
                            value, key=key, headers=headers, partition=where.partition
                        )
                    except LogdError as error:
                        self.failed(appended, error)
                        await trio.sleep(RETRY_S)
                    else:
                        self.acknowledged(
                            appended, where.partition, ack.partition, ack.offset, ack.durability
                        )
                        break

    # --- reading --------------------------------------------------------------------------------

    def _reader(self, name: str, topic: str, partitions: int | None = None) -> Reader:
        count = partitions or (self.settings.partitions if topic == TOPIC else 1)
        reader = Reader(name, topic, dict.fromkeys(range(count), 0))
        for partition in range(count):
            self.history.seek(name, TopicPartition(topic, partition), 0)
        self.readers.append(reader)
        return reader

    async def _consume(self, reader: Reader, from_any_replica: bool = False) -> None:
        """Follow a topic until cancelled; now and then end, and go on from where it stood.

        From any replica means now from this broker, now from that: what it is given must be
        what everybody else is given at the same offset.
        """
        chance = random.Random(f"{self.cluster.seed}:{reader.name}")
        async with self.connected() as client:
            while True:
                node, partitions = None, list(reader.positions)
                if from_any_replica:
                    node, partitions = await self._some_replica(client, reader, chance)
                try:
                    with trio.move_on_after(chance.choice([3.0, 10.0])):
                        await self._read_on(client, reader, node, partitions)
                except LogdError as error:
                    # A replica may lag behind the position, or hold none of the partitions;
                    # whoever leads has all that a reader was ever given.
                    if isinstance(error, OffsetOutOfRangeError):
                        has_leapt = await self._leap(client, reader, node)
                        if node is None and not has_leapt and not self._was_trimmed(reader, error):
                            self.wrong.append(f"{reader.name} at {reader.positions}: {error}")
                    self.cluster.trace.note(reader.name, "reading_failed", error=repr(error))
                    await trio.sleep(RETRY_S)

    async def _some_replica(
        self, client: Client, reader: Reader, chance: random.Random
    ) -> tuple[int, list[int]]:
        """A broker, and what it holds of the reader's topic, as far as that is known; where
        partitions move, most brokers that a reader might ask do not have what it wants."""
        node: int = chance.choice(list(self.cluster.nodes))
        with contextlib.suppress(LogdError):
            placed = (await client.admin.describe_topic(reader.topic)).partitions
            node = chance.choice([node for each in placed for node in each.replicas])
            return node, [each.partition for each in placed if node in each.replicas]
        return node, list(reader.positions)

    async def _follow_replica(self, reader: Reader, replica: int) -> None:
        """Read from one replica and stay with it, however often it restarts and lags, for as
        long as it is one."""
        has_moves = self.settings.has_moves
        async with self.connected() as client:
            while True:
                try:
                    with trio.move_on_after(LOOK_FOR_REPLICA_S if has_moves else math.inf):
                        await self._read_on(client, reader, replica, list(reader.positions))
                except LogdError as error:
                    if isinstance(error, OffsetOutOfRangeError):
                        await self._leap(client, reader, replica)
                    self.cluster.trace.note(reader.name, "reading_failed", error=repr(error))
                    await trio.sleep(RETRY_S)
                if has_moves:
                    replica = await self._replica_to_follow(client, reader, replica)

    async def _replica_to_follow(self, client: Client, reader: Reader, replica: int) -> int:
        """The same one, or another if the partition has left it."""
        (partition,) = reader.positions
        with contextlib.suppress(LogdError):
            replicas = (
                (await client.admin.describe_topic(reader.topic)).partitions[partition].replicas
            )
            if replica not in replicas:
                return replicas[0]
        return replica

    def _was_trimmed(self, reader: Reader, refusal: OffsetOutOfRangeError) -> bool:
        """Whoever led may have trimmed more than its successor, where the reader looks next."""
        return self.is_trimmed(reader.topic) and any(
            position < refusal.log_start for position in reader.positions.values()
        )

    async def _leap(self, client: Client, reader: Reader, node: int | None) -> bool:
        """Go on where the log begins now, where that is behind the position: what lay between
        was trimmed, and nobody is to be given it.  False if there was no such partition."""
        has_leapt = False
        if not self.is_trimmed(reader.topic):
            return False
        with contextlib.suppress(LogdError):
            for placed in (await client.admin.describe_topic(reader.topic)).partitions:
                partition = placed.partition
                if partition not in reader.positions or (
                    node is not None and node not in placed.replicas
                ):
                    continue  # Of a replica that holds only some of them.
                with contextlib.suppress(LogdError):
                    held = await client.admin.offsets(reader.topic, partition, from_replica=node)
                    if held.log_start > reader.positions[partition]:
                        has_leapt = True
                        reader.positions[partition] = held.log_start
                        where = TopicPartition(reader.topic, partition)
                        self.history.seek(reader.name, where, held.log_start)
                        self.cluster.trace.record(reader.name, "leapt", to=held.log_start)
        return has_leapt

    async def _read_on(
        self, client: Client, reader: Reader, node: int | None, partitions: list[int]
    ) -> None:
        start = {partition: reader.positions[partition] for partition in partitions}
        async with client.consumer(reader.topic, start=start, from_replica=node) as consumer:
            try:
                async for record in consumer:
                    self._read(reader, record)
                    reader.positions[record.partition] = record.offset + 1
            finally:
                if reader.topic == KEYED_TOPIC:  # Behind the last record there may be a gap.
                    reader.positions[0] = consumer.position(0) or reader.positions[0]

    def _read(self, reader: Reader, record: Record) -> None:
        if reader.topic == KEYED_TOPIC:
            self._keyed.read(reader.name, record)
            return
        assert record.value is not None
        where = TopicPartition(reader.topic, record.partition)
        self.history.read(reader.name, where, record.offset, record.value)

    async def _data_end(self, client: Client, where: TopicPartition) -> int:
        """As its leader says, which knows of everything that was acknowledged before the call."""
        acknowledged = self.history.acknowledged_last(where)
        offsets = await client.admin.offsets(where.topic, where.partition)
        if not acknowledged < offsets.data_end <= offsets.commit_offset:
            self.wrong.append(f"{where} has {acknowledged} acknowledged, and its leader {offsets}")
        return offsets.data_end

    async def all_arrive(self, ends: dict[TopicPartition, int]) -> None:
        """Wait until every reader has been given everything below ``ends``."""
        while not all(reader.has_reached(ends) for reader in self.readers):
            await trio.sleep(RETRY_S)

    # --- administration -------------------------------------------------------------------------

    async def _administrate(self, name: str) -> None:
        """Whatever an operator may ask while things go wrong: typed errors only."""
        chance = random.Random(f"{self.cluster.seed}:{name}")
        async with self.connected(request_timeout_ms=3_000) as client:
            while not self.is_over:
                call = chance.choice(
                    [
                        self._create_topic,
                        self._delete_topic,
                        self._transfer_leader,
                        self._transfer_leader,
                        self._ask,
                        self._ask,
                    ]
                )
                with contextlib.suppress(LogdError):
                    await call(client, name, chance)
                await trio.sleep(chance.random())

    async def _create_topic(self, client: Client, name: str, chance: random.Random) -> None:
        if len(self._topics) >= TOPICS_MADE_MAX:
            return
        topic = f"{name}-{len(self._topics)}"
        self._topics[topic] = _TopicState.UNKNOWN
        replicas = min(chance.choice([1, 3]), self.settings.cluster.brokers)
        try:
            await client.admin.create_topic(topic, partitions=1, replicas=replicas)
        except LogdError as error:
            if not error.may_have_applied:
                self._topics[topic] = _TopicState.DELETED
            if isinstance(error, TopicExistsError):
                self.wrong.append(f"topic {topic} was created once and is said to exist")
            raise
        self._topics[topic] = _TopicState.EXISTS
        self.cluster.trace.record(name, "made_topic", topic=topic)

    async def _delete_topic(self, client: Client, _: str, chance: random.Random) -> None:
        existing = [t for t, state in self._topics.items() if state is _TopicState.EXISTS]
        if not existing:
            return
        topic = chance.choice(existing)
        try:
            await client.admin.delete_topic(topic)
        except LogdError as error:
            if error.may_have_applied:
                self._topics[topic] = _TopicState.UNKNOWN
            if isinstance(error, UnknownTopicError):
                self.wrong.append(f"topic {topic} exists and could not be deleted: {error}")
            raise
        self._topics[topic] = _TopicState.DELETED

    async def _transfer_leader(self, client: Client, _: str, chance: random.Random) -> None:
        partition = chance.randrange(self.settings.partitions)
        target = chance.choice([None, chance.choice(list(self.cluster.nodes))])
        await client.admin.transfer_leader(TOPIC, partition, target)

    async def _ask(self, client: Client, _: str, chance: random.Random) -> None:
        admin = client.admin
        partition = chance.randrange(self.settings.partitions)
        node = chance.choice(list(self.cluster.nodes))
        match chance.randrange(6):
            case 0:
                await admin.list_topics()
            case 1:
                await admin.describe_cluster()
            case 2:
                await admin.describe_broker(node)
            case 3:
                await admin.describe_partition(TOPIC, partition)
            case 4:
                replica = chance.choice([None, node])
                if replica is None:
                    await self._data_end(client, TopicPartition(TOPIC, partition))
                else:
                    await admin.offsets(TOPIC, partition, from_replica=replica)
            case _:
                await admin.describe_topic(TOPIC)

    async def check_topics(self, client: Client) -> None:
        """After all has healed: what was created is there, what was deleted is not."""
        names = {topic.name for topic in await client.admin.list_topics()}
        for topic, state in self._topics.items():
            if state is _TopicState.EXISTS and topic not in names:
                self.wrong.append(f"topic {topic} was created and is gone")
            if state is _TopicState.DELETED and topic in names:
                self.wrong.append(f"topic {topic} was deleted, or never created, and is there")
