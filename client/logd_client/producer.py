"""The producer: records in, acknowledgements out.

All decisions about order, retries and sequences are made by one ``Pipeline`` per partition.
This file moves bytes for them: one sender task takes batches and queues them on connections,
one short-lived task per partition in trouble finds its leader, one watch task notices
deadlines and leaders that fell silent.  Batching needs no timer: whatever was appended while
the sender had no room, or before it had its turn, travels together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import Final, Literal

import anyio
import anyio.lowlevel

from logd.errors import (
    InvalidPartitionError,
    LogdError,
    NotLeaderError,
    PartialAppendError,
    ProducerFencedError,
    RequestTimeoutError,
    UnavailableError,
    UnknownTopicError,
    UsageError,
    WouldBlock,
)
from logd.limits import (
    BATCH_BYTES_MAX,
    BATCHES_IN_FLIGHT_PER_PRODUCER_MAX,
    DELIVERY_TIMEOUT_MS_MAX,
    KIB,
    MIB,
    RECORD_BYTES_MAX,
)
from logd.record.header import Codec
from logd.record.payload import NO_HEADERS, RecordHeaders
from logd.types import NO_PRODUCER, GroupId, NodeId, ProducerId
from logd.wire.messages import (
    InitProducerRequest,
    InitProducerResponse,
    ProduceRequest,
    ProduceResponse,
    TopicInfo,
)
from logd_client.accumulator import (
    BATCH_TARGET_BYTES_MAX,
    BATCH_TARGET_BYTES_MIN,
    HEADER_OVERHEAD_BYTES,
    NO_FENCE,
    RECORD_OVERHEAD_BYTES,
    Keys,
    OpenBatch,
    Slices,
    Value,
    checked_headers,
    record_bytes,
    too_large,
)
from logd_client.arguments import require_between, require_one_of
from logd_client.backoff import Backoff
from logd_client.budget import ByteBudget
from logd_client.connection import Answer, Connection, Lane
from logd_client.coordination.fences import Fence, HasFence, fence_of, raise_fences
from logd_client.delivery import Ack, AckRange, Delivery, Ticket
from logd_client.partitioner import RoundRobin, partition_for_key
from logd_client.pipeline import Pipeline, SealedBatch
from logd_client.routing import FAILURES_BEFORE_DOUBTING_THE_TOPIC, Routing, partitions_text

Compression = Literal["none", "zstd"]

BATCH_BYTES_DEFAULT: Final = 1 * MIB
"""What a batch costs by itself is spread over its records: four times 256 KiB saved a fifth of all
processor time.  Batches are smaller wherever less than this is waiting."""

BUFFER_BYTES_DEFAULT: Final = 32 * MIB
BATCHES_IN_FLIGHT_DEFAULT: Final = 8
DELIVERY_TIMEOUT_MS_DEFAULT: Final = 120_000

_CODECS: Final = {"none": Codec.NONE, "zstd": Codec.ZSTD}
_STALL_S: Final = 1.0
"""A batch unanswered for this long makes the producer ask whether the leader has changed."""

_STALL_REPEAT_S: Final = 0.25
"""It asks again this often: the others may only just be finding out themselves."""

_SILENCE_GRACE_S: Final = 5.0
"""A broker answers within the request's timeout; silent for this much longer it is gone."""

_SEALED_BYTES_PER_TURN: Final = 256 * KIB
"""Sealing is computing: after this much the sender lets others run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerOptions:
    """See ``Client.producer``."""

    linger_ms: float = 0
    batch_bytes: int = BATCH_BYTES_DEFAULT
    compression: Compression = "none"
    buffer_bytes: int = BUFFER_BYTES_DEFAULT
    delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS_DEFAULT
    batches_in_flight: int = BATCHES_IN_FLIGHT_DEFAULT
    idempotent: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.linger_ms, bool) or not isinstance(self.linger_ms, int | float):
            raise UsageError(f"linger_ms must be a number, not {self.linger_ms!r}")
        if not 0 <= self.linger_ms <= DELIVERY_TIMEOUT_MS_MAX:
            raise UsageError(
                f"linger_ms must be 0 to {DELIVERY_TIMEOUT_MS_MAX}, not {self.linger_ms}"
            )
        require_between(
            "batch_bytes", self.batch_bytes, BATCH_TARGET_BYTES_MIN, BATCH_TARGET_BYTES_MAX
        )
        require_one_of("compression", self.compression, _CODECS)
        # The largest batch has to fit.
        require_between("buffer_bytes", self.buffer_bytes, BATCH_BYTES_MAX)
        require_between("delivery_timeout_ms", self.delivery_timeout_ms, 1, DELIVERY_TIMEOUT_MS_MAX)
        require_between(
            "batches_in_flight", self.batches_in_flight, 1, BATCHES_IN_FLIGHT_PER_PRODUCER_MAX
        )


class _Partition:
    """One partition as the driver sees it."""

    __slots__ = ("backoff", "checked_at", "connection", "group", "is_asking", "is_attaching",
                 "number", "pipeline", "was_redirected")  # fmt: skip

    def __init__(self, number: int, group: GroupId, pipeline: Pipeline, backoff: Backoff) -> None:
        self.number = number
        self.group = group
        self.pipeline = pipeline
        self.backoff = backoff
        self.connection: Connection | None = None
        self.is_attaching = False
        self.was_redirected = False
        """The last refusal named another leader: worth trying at once, but only once."""
        self.checked_at = 0.0
        self.is_asking = False
        """The others are being asked whether its leader, which is silent, still leads."""

    def flush(self) -> None:
        """Let what was given to the connection leave."""
        if self.connection is not None:
            self.connection.flush()


class Producer:
    """Appends records to one topic.  Made by ``Client.producer``; use as a context manager.

    Leaving the context waits until everything appended is acknowledged or has failed; leaving
    it by an exception gives up what is still queued.
    """

    def __init__(self, routing: Routing, topic: str, options: ProducerOptions) -> None:
        self._routing = routing
        self._topic = topic
        self._options = options
        self._clock = routing.environment.clock
        self._wall_clock_ms = routing.environment.wall_clock_ms
        self._batch_bytes = options.batch_bytes
        self._linger_s = options.linger_ms / 1000
        self._delivery_s = options.delivery_timeout_ms / 1000
        self._budget = ByteBudget(options.buffer_bytes)
        self._partitions: list[_Partition] = []
        self._round_robin = RoundRobin(1, 0)
        self._growing: OpenBatch | None = None
        """What a record without key and partition joins next, unless it is closed by then."""
        self._dirty: dict[int, _Partition] = {}
        self._wake_sender = anyio.Event()
        self._wake_watch = anyio.Event()
        self._scope = anyio.CancelScope()
        self._is_open = False
        self._fatal: LogdError | None = None
        self._takes_keyless: TopicInfo | None = None
        """The description of the topic that was looked at last, and found not to be compacted."""
        self._unreported: Delivery | None = None
        """The first that failed with tickets nobody has awaited; ``flush`` reports it."""

    # --- life ---------------------------------------------------------------------------

    async def __aenter__(self) -> Producer:
        """Learn the topic's partitions and obtain a producer id.

        Raises:
            UnknownTopicError: the topic does not exist.
            LogdError: the cluster could not answer in time.
        """
        if self._is_open or self._partitions:
            raise UsageError("a producer is opened once; make another one")
        topic = await self._routing.topic(self._topic)
        producer_id = await self._init_producer()
        partitions = sorted(topic.partitions, key=lambda partition: partition.partition)
        if [partition.partition for partition in partitions] != list(range(len(partitions))):
            raise InvalidPartitionError(f"topic {self._topic!r} is described with gaps")
        rng = self._routing.environment.rng
        for description in partitions:
            pipeline = Pipeline(
                producer_id=producer_id,
                codec=_CODECS[self._options.compression],
                linger_s=self._linger_s,
                # Without sequences nothing keeps pipelined batches in order.
                batches_in_flight=self._options.batches_in_flight if producer_id else 1,
                on_settled=self._budget.give_back,
            )
            self._partitions.append(
                _Partition(
                    description.partition, GroupId(description.group), pipeline, Backoff(rng)
                )
            )
        # Producers that start together do not all begin with partition 0.
        self._round_robin = RoundRobin(len(partitions), rng.randrange(len(partitions)))
        self._is_open = True
        self._routing.tasks.start_soon(self._run)
        self._routing.on_close[self] = self._close
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                await self.flush()
        finally:
            self._close()

    async def aclose(self) -> None:
        """Flush and close.  Cancelled, it gives up what is still queued."""
        await self.__aexit__(None, None, None)

    def _close(self) -> None:
        self._is_open = False
        self._routing.on_close.pop(self, None)
        self._scope.cancel()
        closed = UsageError("the producer was closed before the record was acknowledged")
        for partition in self._partitions:
            partition.pipeline.fail_all(closed)

    async def _init_producer(self) -> ProducerId:
        if not self._options.idempotent:
            return NO_PRODUCER
        response = await self._routing.call(
            self._routing.controller_connection, InitProducerRequest(), InitProducerResponse
        )
        return ProducerId(response.producer_id)

    # --- appending ----------------------------------------------------------------------

    async def append(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        partition: int | None = None,
        expected_offset: int | None = None,
        fence: Fence | HasFence | None = None,
    ) -> Ack:
        """Append one record and wait until it is committed.

        The record joins the open batch of its partition, which is sent as soon as there is
        room for it in flight, and at the latest when it is ``linger_ms`` old.  Records that
        one task appends to one partition are committed in the order of its calls.

        Args:
            value: payload; ``None`` is a tombstone, which deletes ``key`` from a compacted
                topic.  Key, value and headers together take at most ``RECORD_BYTES_MAX``.
            key: chooses the partition (xxh3_64 modulo partition count).  Records without
                one are spread over the partitions batch by batch; a compacted topic takes
                none (UsageError).
            headers: pairs of a name and bytes; names may repeat.
            timestamp_ms: milliseconds since 1970-01-01T00:00Z; default: now.
            partition: overrides the choice made from ``key``.
            expected_offset: append only if no record lies at or above this offset, and the
                log reaches up to it.  Needs ``partition``.
            fence: a lease, or its ``fence``: append only if the partition has seen no newer
                token of that lock, election or shard.

        Returns:
            Topic, partition and offset, the time of the append at the leader, and what
            "committed" means on this topic (``durability``).

        Raises:
            RecordTooLargeError: above the limit.  Nothing was sent.
            UnexpectedOffsetError: ``expected_offset`` did not hold; has ``log_end``.
            FencedError: the partition has seen a newer token: this lease is over.  Nothing was
                appended, by no attempt (``may_have_applied`` is False).
            InvalidPartitionError: the topic has no such partition.
            DeliveryTimeoutError: not acknowledged within ``delivery_timeout_ms``.  Its
                ``may_have_applied`` says whether the record may still be committed.
            OutOfSequenceError: the cluster has forgotten this producer; see
                ``may_have_applied``.  The producer goes on with the next record.
            ProducerFencedError: another producer took over this one's id; it is finished.

        Cancelled while waiting for room in the buffer, nothing is appended.  Cancelled
        later, the record is not recalled: it may still be committed.
        """
        if not self._is_open or self._fatal is not None:
            self._check_open()
        carried = NO_FENCE if fence is None else fence_of(fence)
        if key is None:
            self._check_keyless()
        checked, size = _measured(value, key, headers)
        if not self._budget.take_now(size):
            await self._budget.take(size)
            self._check_open_or_give_back(size)
        chosen, delivery, position = self._add(
            value, key, checked, timestamp_ms, partition, size, carried, expected_offset
        )
        self._send_at_once(chosen)
        await delivery.wait()
        return delivery.ack(position)

    def append_nowait(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        partition: int | None = None,
        fence: Fence | HasFence | None = None,
    ) -> Ticket:
        """Queue one record.  Arguments as ``append``.

        Returns:
            A ticket: ``await ticket`` gives the ``Ack``, or raises what ``append`` raises.
            A failure whose ticket nobody awaits is raised by the next ``flush``.

        Raises:
            WouldBlock: ``buffer_bytes`` are in use.  Nothing was queued.
            RecordTooLargeError, InvalidPartitionError, UsageError: nothing was queued.
        """
        growing = self._growing
        if (
            growing is not None
            and type(value) is bytes
            and key is None
            and partition is None
            and timestamp_ms is None
            and fence is None
            and not headers
        ):
            # The usual record joins the usual batch, which is known to the sender already.
            size = len(value) + RECORD_OVERHEAD_BYTES
            if size <= RECORD_BYTES_MAX and self._budget.take_now(size):
                now_ms = self._wall_clock_ms()
                position = growing.add_plain(value, now_ms, size, self._batch_bytes)
                if position >= 0:
                    return Ticket(growing.delivery, position)
                self._budget.give_back(size)
        self._check_open()
        carried = NO_FENCE if fence is None else fence_of(fence)
        if key is None:
            self._check_keyless()
        checked, size = _measured(value, key, headers)
        if not self._budget.take_now(size):
            raise WouldBlock(
                f"{self._budget.used_bytes} bytes are waiting to be acknowledged, "
                f"the buffer holds {self._options.buffer_bytes}"
            )
        chosen, delivery, position = self._add(
            value, key, checked, timestamp_ms, partition, size, carried
        )
        self._mark_dirty(chosen)
        return Ticket(delivery, position)

    def _add(
        self,
        value: Value,
        key: bytes | None,
        headers: RecordHeaders,
        timestamp_ms: int | None,
        partition: int | None,
        size: int,
        fence: tuple[int, int],
        expected_offset: int | None = None,
    ) -> tuple[_Partition, Delivery, int]:
        """Put a record, whose ``size`` is already taken from the buffer, into a batch.

        Its partition, its batch's delivery and its position in the batch.
        """
        try:
            timestamp_ms = self._wall_clock_ms() if timestamp_ms is None else timestamp_ms
            if type(timestamp_ms) is not int:
                raise UsageError(f"timestamp_ms must be an int, not {timestamp_ms!r}")
            if expected_offset is not None and partition is None:
                raise UsageError("expected_offset needs partition: offsets are per partition")
            chosen = self._choose(key, partition)
        except BaseException:
            self._budget.give_back(size)
            raise
        batch = chosen.pipeline.growing()
        if (
            batch is None
            or expected_offset is not None
            or batch.fence != fence
            or not batch.takes(size, len(headers), self._options.batch_bytes)
        ):
            batch = self._open_batch(chosen, expected_offset, fence)
        if key is None and partition is None and fence is NO_FENCE:
            self._growing = batch
        position = batch.add(value, key, headers, timestamp_ms, size)
        batch.is_closed = expected_offset is not None
        return chosen, batch.delivery, position

    def _open_batch(
        self, partition: _Partition, expected_offset: int | None, fence: tuple[int, int]
    ) -> OpenBatch:
        now = self._clock()
        delivery = Delivery(self._topic, partition.number)
        batch = OpenBatch(
            delivery,
            opened_at=now,
            deadline=now + self._delivery_s,
            values=[],
            keys=None,
            timestamps_ms=[],
            expected_offset=expected_offset,
            fence=fence,
        )
        partition.pipeline.enqueue(batch)
        return batch

    def _choose(self, key: bytes | None, partition: int | None) -> _Partition:
        if partition is not None:
            if not (type(partition) is int and 0 <= partition < len(self._partitions)):
                raise InvalidPartitionError(
                    f"topic {self._topic!r} has no partition {partition!r}, "
                    f"expected {partitions_text(len(self._partitions))}"
                )
            return self._partitions[partition]
        if key is not None:
            return self._partitions[partition_for_key(key, len(self._partitions))]
        current = self._partitions[self._round_robin.current]
        if current.pipeline.growing() is not None:
            return current
        return self._partitions[self._round_robin.advance(self._is_usable)]

    def _check_keyless(self) -> None:
        """A record without a key would stay in a compacted topic for ever."""
        topic = self._routing.view.topic(self._topic)
        if topic is self._takes_keyless:
            return
        if topic is not None and topic.config.get("cleanup", "delete") != "delete":
            raise UsageError(
                f"topic {self._topic!r} is compacted (cleanup={topic.config['cleanup']}): every "
                "record needs a key"
            )
        self._takes_keyless = topic

    def _is_usable(self, partition: int) -> bool:
        return self._partitions[partition].pipeline.is_flowing

    async def append_many(
        self,
        values: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        keys: Sequence[bytes | None] | None = None,
        timestamp_ms: int | None = None,
        partition: int | None = None,
        fence: Fence | HasFence | None = None,
    ) -> tuple[AckRange, ...]:
        """Append many records and wait until all are committed: the fast path.

        The records are cut into batches without being touched one by one.  Those of one
        partition are committed in the order given, behind what was appended to it before.
        Without key and partition the batches are spread over the partitions.

        Args:
            values: any sequence of bytes or ``None`` (tombstones).
            key: the key of all records.
            keys: one key, or ``None``, per record; not together with ``key``.
            timestamp_ms: of all records, milliseconds since 1970-01-01T00:00Z; default: now.
            partition: the partition of all records, overriding the keys' choice.
            fence: of all records, as for ``append``; whose refusal is one of the failures.

        Returns:
            Ranges of acknowledged records in input order: each covers the next ``count``
            inputs, at offsets ``base_offset`` and following of ``partition``.

        Raises:
            PartialAppendError: some records failed.  ``acks`` has the ranges of the others,
                ``failures`` the input ranges ``(start, end, error)`` of those; a record
                above the size limit fails alone.
            InvalidPartitionError, UsageError: nothing was appended.

        Waits while ``buffer_bytes`` are in use.  Cancelled, what was already queued may still
        be committed.
        """
        self._check_open()
        carried = NO_FENCE if fence is None else fence_of(fence)
        if key is not None and keys is not None:
            raise UsageError("give key or keys, not both")
        if timestamp_ms is not None and type(timestamp_ms) is not int:
            raise UsageError(f"timestamp_ms must be an int, not {timestamp_ms!r}")
        timestamp_ms = self._wall_clock_ms() if timestamp_ms is None else timestamp_ms
        if key is not None:
            record_bytes(None, key, 0)
        elif keys is None or None in keys:
            self._check_keyless()
        if partition is not None:
            self._choose(None, partition)
        if keys is not None and partition is None:
            return await self._append_grouped(values, keys, timestamp_ms, carried)

        slices = Slices(values, key if keys is None else keys)
        outcome = _Outcome()
        for start, end, size in slices.bounds(self._options.batch_bytes):
            part_keys = key if keys is None else _as_list(keys[start:end])
            chosen = self._choose(key, partition)
            delivery = await self._enqueue(
                chosen, _as_list(values[start:end]), part_keys, timestamp_ms, size, carried
            )
            outcome.add_batch(range(start, end), delivery)
        outcome.add_too_large(slices.too_large)
        return await outcome.wait()

    async def _append_grouped(
        self,
        values: Sequence[Value],
        keys: Sequence[bytes | None],
        timestamp_ms: int,
        fence: tuple[int, int],
    ) -> tuple[AckRange, ...]:
        """Each record goes where its key says; keyless ones are spread together."""
        Slices(values, keys)  # Refuses wrong types before anything is queued.
        outcome = _Outcome()
        for chosen, positions in self._group(keys):
            group_values = [values[position] for position in positions]
            group_keys = [keys[position] for position in positions]
            slices = Slices(group_values, group_keys)
            for start, end, size in slices.bounds(self._options.batch_bytes):
                delivery = await self._enqueue(
                    chosen,
                    group_values[start:end],
                    group_keys[start:end],
                    timestamp_ms,
                    size,
                    fence,
                )
                outcome.add_batch(positions[start:end], delivery)
            outcome.add_too_large((positions[at], size) for at, size in slices.too_large)
        return await outcome.wait()

    def _group(self, keys: Sequence[bytes | None]) -> list[tuple[_Partition, list[int]]]:
        """Input positions per partition."""
        count = len(self._partitions)
        known: dict[bytes | None, int] = {None: self._choose(None, None).number}
        groups: dict[int, list[int]] = {}
        for position, key in enumerate(keys):
            number = known.get(key)
            if number is None:
                assert key is not None
                number = known[key] = partition_for_key(key, count)
            groups.setdefault(number, []).append(position)
        return [(self._partitions[number], positions) for number, positions in groups.items()]

    async def _enqueue(
        self,
        partition: _Partition,
        values: list[Value],
        keys: Keys,
        timestamp_ms: int,
        size: int,
        fence: tuple[int, int],
    ) -> Delivery:
        if not self._budget.take_now(size):
            await self._budget.take(size)
            self._check_open_or_give_back(size)
        now = self._clock()
        delivery = Delivery(self._topic, partition.number)
        assert keys is None or isinstance(keys, bytes | list)
        partition.pipeline.enqueue(
            OpenBatch(
                delivery,
                opened_at=now,
                deadline=now + self._delivery_s,
                values=values,
                keys=keys,
                timestamps_ms=timestamp_ms,
                size_bytes=size,
                is_closed=True,
                fence=fence,
            )
        )
        self._mark_dirty(partition)
        return delivery

    async def raise_fence(self, lease: Fence | HasFence) -> dict[int, int]:
        """Have every partition of the topic refuse what is older than this lease, although
        nothing has been written with it yet.

        Returns:
            By partition the offset below which lies all that older tokens have written: who has
            read up to it has read all that an earlier holder did.

        Raises:
            FencedError: a newer token is known already: this lease is over.
            LogdError: a partition could not be reached in time.

        Cancelled, some partitions may have been raised; raising one again changes nothing.
        """
        self._check_open()
        topic = await self._routing.topic(self._topic)
        offsets = await raise_fences(self._routing, [topic], fence_of(lease))
        return {partition: offset for (_, partition), offset in sorted(offsets.items())}

    async def flush(self) -> None:
        """Send everything appended so far without lingering, and wait for it.

        Raises:
            LogdError: the first failure of a record whose ticket nobody has awaited.

        Cancelling the wait recalls nothing.
        """
        waiting: list[Delivery] = []
        for partition in self._partitions:
            partition.pipeline.close_growing()
            waiting += partition.pipeline.deliveries()
            self._mark_dirty(partition)
        for delivery in waiting:
            await delivery.wait()
        unreported, self._unreported = self._unreported, None
        if unreported is not None and unreported.unawaited_count:
            unreported.ack(0)

    @property
    def trouble(self) -> LogdError | None:
        """What stands in the way of some partition's records just now, if anything does.

        Whoever waits may want to know; it is tried again until ``delivery_timeout_ms`` is over.
        """
        for partition in self._partitions:
            if partition.is_attaching and partition.pipeline.trouble is not None:
                return partition.pipeline.trouble
        return None

    def _check_open(self) -> None:
        if self._fatal is not None:
            raise self._fatal.with_traceback(None)
        if not self._is_open:
            raise UsageError("the producer is not open: use `async with client.producer(...)`")

    def _check_open_or_give_back(self, size: int) -> None:
        try:
            self._check_open()
        except LogdError:
            self._budget.give_back(size)
            raise

    # --- sending ------------------------------------------------------------------------

    def _mark_dirty(self, partition: _Partition) -> None:
        self._dirty[partition.number] = partition
        self._wake_sender.set()
        self._wake_watch.set()

    def _send_at_once(self, partition: _Partition) -> None:
        """Send a record that its caller waits for, if nothing of its partition is under way:
        there is nothing to share a batch with."""
        if self._linger_s or partition.pipeline.is_busy or not self._send_one(partition):
            self._mark_dirty(partition)
        else:
            partition.flush()
            self._wake_watch.set()

    async def _run(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send)
                tasks.start_soon(self._watch)

    async def _send(self) -> None:
        """Hand batches to connections, a batch per partition in turn."""
        sealed_bytes = 0
        while True:
            await self._wait_for_work()
            dirty, self._dirty = self._dirty, {}
            while dirty:
                for partition in list(dirty.values()):
                    sent = self._send_one(partition)
                    if not sent:
                        del dirty[partition.number]
                        partition.flush()
                    sealed_bytes += sent
                if sealed_bytes >= _SEALED_BYTES_PER_TURN:
                    sealed_bytes = 0
                    for partition in dirty.values():
                        partition.flush()
                    await anyio.lowlevel.checkpoint()

    async def _wait_for_work(self) -> None:
        if not self._linger_s:
            await self._wake_sender.wait()
            self._wake_sender = anyio.Event()
            return
        times = [partition.pipeline.lingers_until() for partition in self._partitions]
        wanted = min((time for time in times if time is not None), default=None)
        left_s = None if wanted is None else max(wanted - self._clock(), 0)
        with anyio.move_on_after(left_s):
            await self._wake_sender.wait()
        self._wake_sender = anyio.Event()
        now = self._clock()
        for partition, time in zip(self._partitions, times, strict=True):
            if time is not None and time <= now:
                self._dirty[partition.number] = partition

    def _send_one(self, partition: _Partition) -> int:
        """Give its connection the next batch of ``partition``, if it may be sent; its size in
        bytes, or 0."""
        pipeline = partition.pipeline
        if partition.is_attaching or pipeline.is_idle:
            return 0
        connection = partition.connection
        if pipeline.needs_restart or connection is None or not connection.is_open:
            # What is in flight on a lost connection has failed by now: nothing is outstanding.
            self._attach_soon(partition)
            return 0
        now = self._clock()
        batch = pipeline.take(now)
        if batch is None:
            return 0
        on_done = partial(self._on_answer, partition, connection, batch, batch.session)
        left_s = batch.deadline - now
        if left_s > self._routing.request_timeout_s:
            left_s = self._routing.request_timeout_s
        request = ProduceRequest(
            group=partition.group,
            timeout_ms=max(1, int(left_s * 1000)),
            expected_offset=batch.expected_offset,
        )
        try:
            connection.enqueue(request, on_done, batch.data)
        except LogdError as error:
            pipeline.refuse(batch, batch.session, error)
            self._mark_dirty(partition)
        return len(batch.data)

    def _on_answer(
        self,
        partition: _Partition,
        connection: Connection,
        batch: SealedBatch,
        session: int,
        answer: Answer | LogdError,
    ) -> None:
        if isinstance(answer, LogdError):
            self._on_refused(partition, connection, batch, session, answer)
        else:
            assert isinstance(answer.message, ProduceResponse)
            partition.backoff.reset()
            partition.was_redirected = False
            partition.pipeline.acknowledge(batch, session, answer.message)
        if not partition.pipeline.is_idle:
            self._mark_dirty(partition)

    def _on_refused(
        self,
        partition: _Partition,
        connection: Connection,
        batch: SealedBatch,
        session: int,
        error: LogdError,
    ) -> None:
        if isinstance(error, ProducerFencedError) and not batch.delivery.is_settled:
            self._end_all(error)
            return
        if isinstance(error, UnknownTopicError):
            # The broker may only be behind: look_again asks one that is not.
            failures = max(partition.backoff.failures, FAILURES_BEFORE_DOUBTING_THE_TOPIC)
            partition.backoff.failures = failures
            error = UnavailableError(str(error))
        if isinstance(error, NotLeaderError) and connection is partition.connection:
            hint = None if error.leader is None else NodeId(error.leader)
            if hint != connection.node:
                self._routing.view.note_leader(partition.group, hint)
                partition.was_redirected = hint is not None
        partition.pipeline.refuse(batch, session, error)
        self._note_failure(batch.delivery)

    def _note_failure(self, delivery: Delivery) -> None:
        if delivery.error is None or not delivery.unawaited_count:
            return
        if self._unreported is None or not self._unreported.unawaited_count:
            self._unreported = delivery

    def _end_all(self, error: LogdError) -> None:
        """This producer can never append again."""
        self._fatal = error
        for partition in self._partitions:
            self._fail_all(partition, error)

    def _fail_all(self, partition: _Partition, error: LogdError) -> None:
        waiting = list(partition.pipeline.deliveries())
        partition.pipeline.fail_all(error)
        for delivery in waiting:
            self._note_failure(delivery)

    # --- finding the leader -------------------------------------------------------------

    def _attach_soon(self, partition: _Partition) -> None:
        partition.is_attaching = True
        self._routing.tasks.start_soon(self._attach, partition)

    async def _attach(self, partition: _Partition) -> None:
        """Find the partition's leader, connect to it, and start the pipeline (again)."""
        pipeline = partition.pipeline
        while self._is_open and not pipeline.is_idle:
            try:
                partition.connection = await self._find_leader(partition)
            except UnknownTopicError as error:
                self._fail_all(partition, error)
            except LogdError as error:
                pipeline.note_trouble(error)
            else:
                pipeline.restart()
                break
        partition.is_attaching = False
        self._mark_dirty(partition)

    async def _find_leader(self, partition: _Partition) -> Connection:
        routing, backoff = self._routing, partition.backoff
        failures = backoff.failures
        if partition.was_redirected and failures <= 1:
            backoff.failures += 1
        elif failures or partition.connection is not None:
            await anyio.sleep(backoff.next_delay_s())
            suspect = None if partition.connection is None else partition.connection.node
            await routing.look_again(self._topic, partition.group, failures, suspect)
        else:
            backoff.failures += 1
        return await routing.leader_connection(partition.group, Lane.PRODUCE, failures)

    # --- watching -----------------------------------------------------------------------

    async def _watch(self) -> None:
        """Expire deliveries, and notice leaders that fell silent."""
        while True:
            await self._wake_watch.wait()
            now = self._clock()
            due: list[float] = []
            for partition in self._partitions:
                self._expire(partition, now)
                stalls_at = self._check_for_stall(partition, now)
                deadline = partition.pipeline.next_deadline()
                if deadline is not None:
                    due += (deadline, stalls_at)
            if not due:
                self._wake_watch = anyio.Event()
                continue
            await anyio.sleep(max(min(due) - now, 0.001))

    def _expire(self, partition: _Partition, now: float) -> None:
        deadline = partition.pipeline.next_deadline()
        if deadline is None or now < deadline:
            return
        waiting = list(partition.pipeline.deliveries())
        partition.pipeline.expire(now)
        for delivery in waiting:
            self._note_failure(delivery)
        self._mark_dirty(partition)

    def _check_for_stall(self, partition: _Partition, now: float) -> float:
        """Ask who leads if it is time to; returns when that is, at the earliest."""
        sent_at = partition.pipeline.oldest_sent_at()
        if sent_at is None or partition.connection is None:
            return now + _STALL_S
        stalls_at = max(sent_at + _STALL_S, partition.checked_at + _STALL_REPEAT_S)
        if now < stalls_at:
            return stalls_at
        partition.checked_at = now
        if now >= sent_at + self._routing.request_timeout_s + _SILENCE_GRACE_S:
            partition.connection.fail_if_silent_since(
                sent_at, RequestTimeoutError(f"no answer for {now - sent_at:.0f} s")
            )
        elif self._options.idempotent and not partition.is_asking:
            partition.is_asking = True
            self._routing.tasks.start_soon(self._leave_if_deposed, partition, partition.connection)
        return now + _STALL_REPEAT_S

    async def _leave_if_deposed(self, partition: _Partition, connection: Connection) -> None:
        """Ask the others who leads; go there if it is no longer the broker that is silent."""
        try:
            await self._routing.refresh(connection.node)
        except LogdError:
            return  # Nobody else can be reached either: go on waiting.
        finally:
            partition.is_asking = False
        leader = self._routing.view.leader(partition.group)
        if leader in (None, connection.node) or partition.connection is not connection:
            return
        if partition.pipeline.oldest_sent_at() is None or partition.is_attaching:
            return
        partition.was_redirected = True
        partition.pipeline.abandon(
            RequestTimeoutError(f"{connection.name} is silent and node {leader} leads now")
        )
        self._mark_dirty(partition)


def _measured(
    value: Value, key: bytes | None, headers: Sequence[tuple[str, bytes]]
) -> tuple[RecordHeaders, int]:
    """One record's headers as they are stored, and what it takes from the buffer."""
    if key is None and not headers and type(value) is bytes:
        size = len(value)
        if size <= RECORD_BYTES_MAX:
            return NO_HEADERS, size + RECORD_OVERHEAD_BYTES
    checked, headers_bytes = checked_headers(headers)
    size = record_bytes(value, key, headers_bytes)
    return checked, size + RECORD_OVERHEAD_BYTES + len(checked) * HEADER_OVERHEAD_BYTES


class _Outcome:
    """What became of the records of one ``append_many``, by input position."""

    def __init__(self) -> None:
        self._batches: list[tuple[Sequence[int], Delivery]] = []
        self._failures: list[tuple[int, int, LogdError]] = []

    def add_batch(self, positions: Sequence[int], delivery: Delivery) -> None:
        """The inputs at ``positions``, increasing, travel in one batch."""
        self._batches.append((positions, delivery))

    def add_too_large(self, records: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> None:
        for position, size in records:
            self._failures.append((position, position + 1, too_large(size)))

    async def wait(self) -> tuple[AckRange, ...]:
        """Wait for every batch; the acknowledged ranges in input order."""
        acks: list[tuple[int, AckRange]] = []
        for positions, delivery in self._batches:
            await delivery.wait()
            for start, end, at in _runs(positions):
                if delivery.error is not None:
                    self._failures.append((start, end, delivery.error))
                else:
                    acks.append((start, delivery.ack_range(at, end - start)))
        acks.sort(key=lambda pair: pair[0])
        ranges = tuple(ack for _, ack in acks)
        if self._failures:
            self._failures.sort(key=lambda failure: failure[0])
            raise PartialAppendError(ranges, tuple(self._failures))
        return ranges


def _as_list(part: Sequence[Value]) -> list[Value]:
    return part if isinstance(part, list) else list(part)


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Start and end of each run of consecutive positions, and where it lies in the batch."""
    if isinstance(positions, range):
        yield positions.start, positions.stop, 0
        return
    numbered = enumerate(positions)
    for _, run in groupby(numbered, key=lambda pair: pair[1] - pair[0]):
        rows = list(run)
        at, start = rows[0]
        yield start, start + len(rows), at
