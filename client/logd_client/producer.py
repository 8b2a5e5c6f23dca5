"""The producer: records in, acknowledgements out.

It finds each record a batch to join, waiting for room in the buffer.  A ``PartitionChoice`` says in
which partition; a ``Cutter`` makes parts of many.  What becomes of batches is decided by a
``Pipeline`` per partition; a ``Sender`` carries them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Final, Literal

from logd.errors import (
    InvalidPartitionError,
    LogdError,
    UsageError,
    WouldBlock,
)
from logd.limits import (
    BATCH_BYTES_MAX,
    BATCHES_IN_FLIGHT_PER_PRODUCER_MAX,
    DELIVERY_TIMEOUT_MS_MAX,
    MIB,
    OFFSET_MAX,
    RECORD_BYTES_MAX,
)
from logd.record.header import Codec
from logd.record.payload import NO_HEADERS, RecordHeaders
from logd.record.timestamps import TIMESTAMP_MS_MAX, TimestampRuns
from logd.types import NO_PRODUCER, GroupId, ProducerId
from logd.wire.messages import (
    InitProducerRequest,
    InitProducerResponse,
    TopicInfo,
)
from logd_client.accumulator import (
    BATCH_TARGET_BYTES_MAX,
    BATCH_TARGET_BYTES_MIN,
    HEADER_OVERHEAD_BYTES,
    NO_FENCE,
    RECORD_OVERHEAD_BYTES,
    OpenBatch,
    Value,
    checked_headers,
    record_bytes,
)
from logd_client.arguments import ANOTHER_LOOP, NOT_OPEN, require_between, require_one_of
from logd_client.budget import TAKEN_PER_LEFT, ByteBudget, Share
from logd_client.columns import columns_of
from logd_client.coordination.fences import Fence, HasFence, fence_of, raise_fences
from logd_client.cutting import Cutter, Part
from logd_client.delivery import Ack, AckRange, Delivery, ManyDeliveries, Ticket
from logd_client.partition_choice import PartitionChoice
from logd_client.pipeline import Pipeline
from logd_client.routing import Routing
from logd_client.sender import ProducerPartition, Sender

Compression = Literal["none", "zstd"]

BATCH_BYTES_DEFAULT: Final = 1 * MIB
"""What a batch costs by itself is spread over its records: four times 256 KiB saved a fifth of all
processor time.  Batches are smaller wherever less than this is waiting."""

SMALL_PART: Final = 4
"""Records of ``append_many`` that fill no more than one part in so many of a batch share it with
others: batches that are nearly empty cost everybody as much as full ones."""

BUFFER_BYTES_DEFAULT: Final = 32 * MIB
BATCHES_IN_FLIGHT_DEFAULT: Final = 8
DELIVERY_TIMEOUT_MS_DEFAULT: Final = 120_000

_GIVEN_UP: Final = "the producer was closed before the record was acknowledged"

_CODECS: Final = {"none": Codec.NONE, "zstd": Codec.ZSTD}


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
        if self.linger_ms >= self.delivery_timeout_ms:
            # Whatever waits for company would expire before it is sent.
            raise UsageError(
                f"linger_ms must be less than delivery_timeout_ms, {self.delivery_timeout_ms}, "
                f"not {self.linger_ms}"
            )
        require_between(
            "batches_in_flight", self.batches_in_flight, 1, BATCHES_IN_FLIGHT_PER_PRODUCER_MAX
        )


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
        self._sender = Sender(
            routing, topic, linger_s=self._linger_s, is_idempotent=options.idempotent
        )
        self._partitions = self._sender.partitions
        self._choice = PartitionChoice(topic, self._partitions)
        self._cutter = Cutter(self._choice, options.batch_bytes)
        self._producer_id = NO_PRODUCER
        self._thread = 0
        """In which it was opened."""
        self._growing: OpenBatch | None = None
        """What a record without key and partition joins next, unless it is closed by then."""
        self._growing_share = Share()
        """Of the partition that it is for."""
        self._takes_keyless: TopicInfo | None = None
        """The description of the topic that was looked at last, and found not to be compacted."""

    # --- life ---------------------------------------------------------------------------

    async def __aenter__(self) -> Producer:
        """Learn the topic's partitions and obtain a producer id.

        Raises:
            UnknownTopicError: the topic does not exist.
            UsageError: the client is closed.
            LogdError: the cluster could not answer in time.
        """
        if self._partitions:
            raise UsageError("a producer is opened once; make another one")
        topic = await self._routing.topic(self._topic, as_it_is_now=True)
        self._producer_id = await self._init_producer()
        # Closed meanwhile, it would end nothing that is opened now.
        self._routing.check_open()
        self._add_partitions(topic)
        # Producers that start together do not all begin with partition 0.
        self._choice.begin_with(self._routing.environment.rng.randrange(len(self._partitions)))
        self._thread = get_ident()
        self._sender.open()
        self._routing.on_close[self] = self._close
        self._routing.on_learnt[self] = self._look_for_more_partitions
        return self

    def _look_for_more_partitions(self) -> None:
        """Spread records over those too that the topic has got since."""
        groups = [partition.group for partition in self._partitions]
        topic = self._routing.view.grown_topic(self._topic, groups)
        if topic is not None:
            self._add_partitions(topic)
            self._choice.grow()

    def _add_partitions(self, topic: TopicInfo) -> None:
        """Those of ``topic`` that this producer does not have yet."""
        partitions = sorted(topic.partitions, key=lambda partition: partition.partition)
        if [partition.partition for partition in partitions] != list(range(len(partitions))):
            raise InvalidPartitionError(f"topic {self._topic!r} is described with gaps")
        for description in partitions[len(self._partitions) :]:
            share = self._budget.add_share()
            pipeline = Pipeline(
                producer_id=self._producer_id,
                codec=_CODECS[self._options.compression],
                linger_s=self._linger_s,
                # Without sequences nothing keeps pipelined batches in order.
                batches_in_flight=self._options.batches_in_flight if self._producer_id else 1,
                on_settled=partial(self._budget.give_back, share),
                on_failed=self._sender.failures.note,
            )
            self._sender.add_partition(GroupId(description.group), pipeline, share)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._check_thread()
        try:
            if error is None:
                await self.flush()
        finally:
            self._close()

    async def aclose(self) -> None:
        """Flush and close.  Cancelled, it gives up what is still queued."""
        await self.__aexit__(None, None, None)

    def _close(self) -> None:
        self._routing.on_close.pop(self, None)
        self._routing.on_learnt.pop(self, None)
        self._sender.close(UsageError(_GIVEN_UP))

    async def _init_producer(self) -> ProducerId:
        if not self._options.idempotent:
            return NO_PRODUCER
        response = await self._routing.call_controller(InitProducerRequest(), InitProducerResponse)
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
                ``may_have_applied`` says whether the record may still be committed: then to append
                it again is to store another one; else it is ``retriable``.
            OutOfSequenceError: the cluster has forgotten this producer; see
                ``may_have_applied``.  The producer goes on with the next record.
            ProducerFencedError: another producer took over this one's id; it is finished.

        Cancelled while waiting for room in the buffer, nothing is appended.  Cancelled
        later, the record is not recalled: it may still be committed.
        """
        chosen, delivery, position = await self._queue(
            value, key, headers, timestamp_ms, partition, fence, expected_offset
        )
        self._sender.send_at_once(chosen)
        await delivery.wait()
        return delivery.ack(position)

    async def enqueue(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        partition: int | None = None,
        fence: Fence | HasFence | None = None,
    ) -> Ticket:
        """Queue one record, waiting for room in the buffer if there is none.

        Arguments as ``append``.  For who has many records, one after the other, and looks at
        their fates later: what is produced faster than the cluster takes it waits here.

        Returns:
            A ticket, as ``append_nowait`` does.

        Raises:
            RecordTooLargeError, InvalidPartitionError, UsageError: nothing was queued.

        Cancelled, nothing is queued.
        """
        chosen, delivery, position = await self._queue(
            value, key, headers, timestamp_ms, partition, fence
        )
        self._sender.mark_dirty(chosen)
        return Ticket(delivery, position)

    async def _queue(
        self,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        timestamp_ms: int | None,
        partition: int | None,
        fence: Fence | HasFence | None,
        expected_offset: int | None = None,
    ) -> tuple[ProducerPartition, Delivery, int]:
        """Check a record, wait for room, and put it into a batch."""
        self._check_usable()
        carried = NO_FENCE if fence is None else fence_of(fence)
        if key is None:
            self._check_keyless()
        checked, size = _measured(value, key, headers)
        if partition is not None:
            await self._learn_of(partition)
        timestamp_ms = self._time_of(timestamp_ms)
        if expected_offset is not None:
            require_between("expected_offset", expected_offset, 0, OFFSET_MAX)
            if partition is None:
                raise UsageError("expected_offset needs partition: offsets are per partition")
        chosen = self._choice.of(key, partition)
        is_bound = key is not None or partition is not None
        if not self._budget.take_now(chosen.share, size, is_bound=is_bound):
            taken_for = chosen.share
            await self._budget.take(taken_for, size, is_bound=is_bound)
            self._check_open_or_give_back(taken_for, size)
            # It may be another one's turn by now, or the topic has more of them.
            chosen = self._choice.of(key, partition)
            self._budget.move(size, taken_for, chosen.share)
        return self._add(
            chosen, value, key, checked, timestamp_ms, size, carried, is_bound, expected_offset
        )

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
            A failure of which nobody has heard that way is raised by the next ``flush``.

        Raises:
            WouldBlock: ``buffer_bytes`` are in use, or the partition's share of them.  Nothing was
                queued.
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
            and get_ident() == self._thread
        ):
            # The usual record joins the usual batch, which is known to the sender already.
            size = len(value) + RECORD_OVERHEAD_BYTES
            share = self._growing_share
            if size <= RECORD_BYTES_MAX and self._budget.take_now(share, size, is_bound=False):
                now_ms = self._wall_clock_ms()
                position = growing.add_plain(value, now_ms, size, self._batch_bytes)
                if position >= 0:
                    return Ticket(growing.delivery, position)
                self._budget.give_back(share, size)
        self._check_usable()
        carried = NO_FENCE if fence is None else fence_of(fence)
        if key is None:
            self._check_keyless()
        checked, size = _measured(value, key, headers)
        timestamp_ms = self._time_of(timestamp_ms)
        chosen = self._choice.of(key, partition)
        is_bound = key is not None or partition is not None
        if not self._budget.take_now(chosen.share, size, is_bound=is_bound):
            raise WouldBlock(
                f"{self._budget.used_bytes} bytes are waiting to be acknowledged, "
                f"{chosen.share.held_bytes} of them for partition {chosen.number}: the buffer "
                f"holds {self._options.buffer_bytes}, and no partition takes more than "
                f"{TAKEN_PER_LEFT} times what it leaves"
            )
        _, delivery, position = self._add(
            chosen, value, key, checked, timestamp_ms, size, carried, is_bound
        )
        self._sender.mark_dirty(chosen)
        return Ticket(delivery, position)

    def check(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        partition: int | None = None,
        fence: Fence | HasFence | None = None,
    ) -> int:
        """Refuse what ``append_nowait`` would, whether there is room or not.

        It only looks, and so it may be called from any thread.

        Returns:
            The bytes that the record would take of the buffer.

        Raises:
            RecordTooLargeError, InvalidPartitionError, UsageError.
        """
        self._check_open()
        if fence is not None:
            fence_of(fence)
        if key is None:
            self._check_keyless()
        if timestamp_ms is not None:
            self._time_of(timestamp_ms)
        if partition is not None:
            self._choice.of(None, partition)
        return _measured(value, key, headers)[1]

    def _add(
        self,
        chosen: ProducerPartition,
        value: Value,
        key: bytes | None,
        headers: RecordHeaders,
        timestamp_ms: int,
        size: int,
        fence: tuple[int, int],
        is_bound: bool,
        expected_offset: int | None = None,
    ) -> tuple[ProducerPartition, Delivery, int]:
        """Put a record, whose ``size`` is already taken from the buffer, into a batch.

        Its partition, its batch's delivery and its position in the batch.
        """
        batch = self._batch_for(
            chosen, size, fence, header_count=len(headers), expected_offset=expected_offset
        )
        if not is_bound and fence is NO_FENCE:
            self._growing, self._growing_share = batch, chosen.share
        position = batch.add(value, key, headers, timestamp_ms, size)
        batch.is_closed = expected_offset is not None
        return chosen, batch.delivery, position

    def _time_of(self, timestamp_ms: int | None) -> int:
        """A record's timestamp.  One that no batch can hold would take its batch along."""
        if timestamp_ms is not None:
            require_between("timestamp_ms", timestamp_ms, -TIMESTAMP_MS_MAX, TIMESTAMP_MS_MAX)
            return timestamp_ms
        now_ms = self._wall_clock_ms()
        if type(now_ms) is not int:
            raise UsageError(f"wall_clock_ms must give an int, not {now_ms!r}")
        return now_ms

    def _batch_for(
        self,
        partition: ProducerPartition,
        size: int,
        fence: tuple[int, int],
        *,
        record_count: int = 1,
        header_count: int = 0,
        expected_offset: int | None = None,
    ) -> OpenBatch:
        """What records of ``size`` bytes join: the growing batch, or a new one behind it."""
        growing = partition.pipeline.growing()
        if (
            growing is not None
            and expected_offset is None
            and growing.fence == fence
            and growing.takes(size, header_count, self._batch_bytes, record_count)
        ):
            return growing
        now = self._clock()
        delivery = Delivery(self._topic, partition.number)
        batch = OpenBatch(
            delivery,
            opened_at=now,
            deadline=now + self._delivery_s,
            values=[],
            keys=None,
            timestamps=TimestampRuns(),
            expected_offset=expected_offset,
            fence=fence,
        )
        partition.pipeline.enqueue(batch)
        return batch

    async def _learn_of(self, partition: int) -> None:
        """One that is not known here may have been added since."""
        if type(partition) is int and partition >= len(self._partitions):
            await self._routing.describe_topic(self._topic)
            self._check_open()  # It may have ended meanwhile: nothing would leave any more.

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

        The records are cut into batches without being touched one by one.  What is left for a
        last small batch joins the open batch of its partition, as single records do.  Those of
        one partition are committed in the order given, behind what was appended to it before.
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
        self._check_usable()
        carried = NO_FENCE if fence is None else fence_of(fence)
        if key is not None and keys is not None:
            raise UsageError("give key or keys, not both")
        value_column, key_column = columns_of(values, keys)
        timestamp_ms = self._time_of(timestamp_ms)
        if key is not None:
            record_bytes(None, key, 0)
        elif key_column is None or key_column.has_none:
            self._check_keyless()
        if partition is not None:
            await self._learn_of(partition)
            self._choice.of(None, partition)
        outcome = ManyDeliveries()
        if keys is not None and partition is None and len(self._partitions) == 1:
            partition = 0  # It need not be worked out for each key.
        if key_column is None or partition is not None:
            shared = key if key_column is None else key_column
            parts = self._cutter.in_order(value_column, shared, partition, outcome)
        else:
            parts = self._cutter.by_key(value_column, key_column, outcome)
        is_bound = key is not None or keys is not None or partition is not None
        for part in parts:
            try:
                delivery, first = await self._enqueue(
                    part, timestamp_ms, carried, is_bound=is_bound
                )
            except LogdError as error:
                outcome.add_failures(part.positions, error)
            else:
                outcome.add_batch(part.positions, delivery, first)
        return await outcome.wait()

    async def _enqueue(
        self, part: Part, timestamp_ms: int, fence: tuple[int, int], *, is_bound: bool
    ) -> tuple[Delivery, int]:
        """Put records into a batch; its delivery, and the position of the first one in it.

        Raises:
            UsageError, ProducerFencedError: the producer has ended, perhaps while others of the
                same call waited.  These were not queued.
        """
        _, partition, values, keys, size = part
        # A key of all records stands in the batch once, unless others with other keys share it.
        shared_size = size
        if isinstance(keys, bytes):
            shared_size += len(keys) * (len(values) - 1)
        is_small = shared_size * SMALL_PART <= self._batch_bytes
        if is_small:
            # Among others it takes more: their times differ, and their keys may.
            size = shared_size + RECORD_OVERHEAD_BYTES * len(values)
        if not self._budget.take_now(partition.share, size, is_bound=is_bound):
            await self._budget.take(partition.share, size, is_bound=is_bound)
        if not self._sender.is_open or self._sender.fatal is not None:
            self._check_open_or_give_back(partition.share, size)
        if is_small:
            batch = self._batch_for(partition, size, fence, record_count=len(values))
            self._sender.mark_dirty(partition)
            return batch.delivery, batch.add_many(values, keys, timestamp_ms, size)
        now = self._clock()
        delivery = Delivery(self._topic, partition.number)
        partition.pipeline.enqueue(
            OpenBatch(
                delivery,
                opened_at=now,
                deadline=now + self._delivery_s,
                values=values,
                keys=keys,
                timestamps=TimestampRuns(timestamp_ms),
                size_bytes=size,
                is_closed=True,
                fence=fence,
            )
        )
        self._sender.mark_dirty(partition)
        return delivery, 0

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
        self._check_usable()
        offsets = await raise_fences(self._routing, [self._topic], fence_of(lease))
        return {partition: offset for (_, partition), offset in sorted(offsets.items())}

    async def flush(self) -> None:
        """Send everything appended so far without lingering, and wait for it.

        Raises:
            LogdError: the first failure of which nobody has heard by awaiting a ticket.

        Cancelling the wait recalls nothing.
        """
        self._check_thread()
        waiting: list[Delivery] = []
        for partition in self._partitions:
            partition.pipeline.close_growing()
            waiting += partition.pipeline.deliveries()
            self._sender.mark_dirty(partition)
        for delivery in waiting:
            await delivery.wait()
        self._tell_of_failures()

    def require_settled(self) -> None:
        """As ``flush``, for whom the event loop does not run any more: what is still under way has
        failed.  May be called from any thread."""
        if not all(partition.pipeline.is_idle for partition in self._partitions):
            error = UsageError(_GIVEN_UP)
            error.may_have_applied = True
            raise error
        self._tell_of_failures()

    def _tell_of_failures(self) -> None:
        unheard = self._sender.failures.take()
        if unheard is not None:
            unheard.ack(0)

    @property
    def trouble(self) -> LogdError | None:
        """What stands in the way of some partition's records just now, if anything does.

        Whoever waits may want to know; it is tried again until ``delivery_timeout_ms`` is over.
        """
        return self._sender.trouble

    def _check_usable(self) -> None:
        if not self._sender.is_open or self._sender.fatal is not None:
            self._check_open()
        if get_ident() != self._thread:  # In another one, nothing would wake who waits.
            raise UsageError(ANOTHER_LOOP)

    def _check_thread(self) -> None:
        """As far as there is anything to wait for: it may never have been opened."""
        if get_ident() != self._thread and self._partitions:
            raise UsageError(ANOTHER_LOOP)

    def _check_open(self) -> None:
        fatal = self._sender.fatal
        if fatal is not None:
            raise fatal.with_traceback(None)
        if not self._sender.is_open:
            if self._partitions:
                raise UsageError("the producer is closed: make another one")
            raise UsageError(f"the producer is {NOT_OPEN}")

    def _check_open_or_give_back(self, share: Share, size: int) -> None:
        try:
            self._check_open()
        except LogdError:
            self._budget.give_back(share, size)
            raise


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
