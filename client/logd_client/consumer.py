"""The consumer: committed records, in order within each partition, from any offset on.

A ``PartitionFeed`` per partition keeps that one subscribed.  What arrives is decoded by the
caller's own task when it asks for it, so a slow caller costs nobody anything but the bytes of
its credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from threading import get_ident
from types import TracebackType
from typing import Final

import anyio
import anyio.lowlevel

from logd.errors import (
    CorruptionError,
    LogdError,
    MalformedBatchError,
    UnavailableError,
    UsageError,
)
from logd.types import GroupId, NodeId, Offset
from logd.wire.messages import PartitionInfo
from logd_client.arguments import (
    ANOTHER_LOOP,
    LOOP_HAS_ENDED,
    NOT_OPEN,
)
from logd_client.batch_at_hand import BatchAtHand
from logd_client.consumer_options import CREDIT_BYTES_MIN, ConsumerOptions
from logd_client.cursor import Cursor, StartKind
from logd_client.extents import data_ends
from logd_client.partition_feed import PartitionFeed
from logd_client.records import Batch, Record
from logd_client.routing import Routing, partition_of

_RECORDS_PER_TURN: Final = 2_048
"""Of what has arrived so many are given out before others run: a turn of the event loop costs as
much as a small batch."""

_RECORDS_LIKE_A_BATCH: Final = 64
"""So many cost about as much as a batch does by itself."""

_QUIET_S: Final = 1.0
"""A connection that delivers nothing for this long is asked whether it still works."""

_STANDS_STILL_S: Final = 10.0
"""So is one that delivers, about a partition of which nothing comes for this long."""


class Consumer:
    """Reads one topic.  Made by ``Client.consumer``; use as a context manager.

    Records of one partition come in order of their offsets, each once; partitions take turns
    batch by batch.  Only one task may iterate at a time.  Iterating goes on across leader
    changes, lost connections and restarted brokers for as long as it takes; cancelled, it
    loses no record: the next iteration begins with the one that was not given out.
    """

    def __init__(self, routing: Routing, topic: str, options: ConsumerOptions) -> None:
        self._routing = routing
        self._topic = topic
        self._options = options
        self._feeds: dict[int, PartitionFeed] = {}
        self._ready: deque[PartitionFeed] = deque()
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._is_open = False
        self._thread = 0
        """In which it was opened."""
        self._has_outlived_its_loop = False
        self._is_iterating = False
        self._taken_in_a_row = 0
        """Records, about, since others ran."""
        self._last_feed: PartitionFeed | None = None
        self.at_hand = BatchAtHand()
        self.on_skipped: Callable[[MalformedBatchError], None] = lambda error: None
        """Told of each batch that ``on_malformed="skip"`` steps over; set by who opens this one."""

    # --- life ---------------------------------------------------------------------------

    async def __aenter__(self) -> Consumer:
        """Subscribe.  With ``start`` "latest" or a time, the position is fixed on return.

        Raises:
            UnknownTopicError, InvalidPartitionError: there is no such topic or partition.
            UsageError: the client is closed, or this consumer meanwhile.
            LogdError: a position could not be found out in time.
        """
        if self._is_open or self._feeds:
            raise UsageError("a consumer is opened once; make another one")
        topic = await self._routing.topic(self._topic, as_it_is_now=True)
        starts = self._options.starts(len(topic.partitions))
        descriptions = [partition_of(topic, number) for number in starts]
        stops = await self._stops(descriptions)
        # Closed meanwhile, it would end nothing that is opened now.
        self._routing.check_open()
        for description in descriptions:
            feed = self._add_feed(description, starts[description.partition], len(descriptions))
            feed.cursor.stop = stops.get(description.partition)
        self._is_open = True
        self._thread = get_ident()
        self._routing.on_close[self] = self._close
        self._routing.on_learnt[self] = self._look_for_more_partitions
        self._routing.tasks.start_soon(self._run)
        for feed in self._feeds.values():
            feed.attach_soon()
        try:
            await self._wait_for_positions(
                [self._feeds[n] for n, (kind, _) in starts.items() if kind in ("latest", "time")]
            )
        except BaseException:
            self._close()
            raise
        return self

    def _add_feed(
        self, description: PartitionInfo, start: tuple[StartKind, int], partition_count: int
    ) -> PartitionFeed:
        replica = self._options.from_replica
        pinned = None if replica is None else NodeId(replica)
        cursor = Cursor(
            topic=self._topic,
            partition=description.partition,
            group=GroupId(description.group),
            start=start,
            credit_bytes=max(self._options.credit_bytes // partition_count, CREDIT_BYTES_MIN),
            any_replica=pinned is not None,
        )
        cursor.on_skipped = self.on_skipped
        feed = PartitionFeed(self, self._routing, cursor, pinned)
        feed.leaps_over_trimmed = self._options.on_trimmed == "earliest"
        self._feeds[description.partition] = feed
        return feed

    def _look_for_more_partitions(self) -> None:
        """Read those too that the topic has got since, if it reads such ones."""
        start = self._options.start_of_added
        if start is None:
            return
        groups = [feed.cursor.group for feed in self._feeds.values()]
        topic = self._routing.view.grown_topic(self._topic, groups)
        if topic is None:
            return
        for description in topic.partitions:
            if description.partition not in self._feeds:
                self._add_feed(description, start, len(topic.partitions)).attach_soon()

    async def _stops(self, descriptions: Sequence[PartitionInfo]) -> dict[int, Offset]:
        """Where each partition's records end for this consumer; none if they do not."""
        stop, replica = self._options.stop, self._options.from_replica
        if stop is None:
            return {}
        numbers = [description.partition for description in descriptions]
        if isinstance(stop, Mapping):
            if sorted(stop) != sorted(numbers):
                raise UsageError(
                    f"stop names the partitions {sorted(stop)}, those that are read are {numbers}"
                )
            return {number: Offset(offset) for number, offset in stop.items()}
        return await data_ends(self._routing, self._topic, descriptions, replica)

    async def _wait_for_positions(self, feeds: Sequence[PartitionFeed]) -> None:
        """Wait until it is settled what "latest" or a time means."""
        with anyio.move_on_after(self._routing.request_timeout_s):
            for feed in feeds:
                while feed.cursor.position is None and feed.failure is None and self._is_open:
                    await self._wait_for_change()
        if not self._is_open:
            raise UsageError("the consumer was closed while it looked for its position")
        for feed in feeds:
            if feed.failure is not None:
                raise feed.failure
            if feed.cursor.position is None:
                raise feed.trouble or UnavailableError(
                    f"{self._topic}/{feed.cursor.partition}: no broker told the position"
                )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the subscriptions.  Iteration in progress stops."""
        if self._is_open and get_ident() != self._thread:
            raise UsageError(ANOTHER_LOOP)
        self._close()

    def _close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._routing.on_close.pop(self, None)
        self._routing.on_learnt.pop(self, None)
        self._scope.cancel()
        self.at_hand.stop()
        for feed in self._feeds.values():
            feed.leave_connection()
        self._changed.set()

    # --- iterating ----------------------------------------------------------------------

    def __aiter__(self) -> RecordIterator:
        """Iterate over records: ``partition``, ``offset``, ``timestamp_ms``, ``key``,
        ``value``, ``headers``.

        Raises, while iterating:
            OffsetOutOfRangeError: the position is outside the log, at the start or because
                retention overtook this consumer; has ``log_start`` and ``log_end``.  Not
                raised for what was trimmed with ``on_trimmed="earliest"``.
            UnknownTopicError: the topic was deleted.
            NotAReplicaError: ``from_replica`` holds no replica, or none any more.
            MalformedBatchError: a batch cannot be read; has the offsets it covers.  Raised
                again until the consumer is opened with ``on_malformed="skip"``.
            CorruptionError: several replicas delivered damaged bytes.  Iterating again
                tries again.

        Ends when the consumer is closed, or ``stop`` is reached in every partition.
        """
        return RecordIterator(self)

    def batches(self) -> BatchIterator:
        """Iterate over batches, as columns: ``values``, ``keys``, ``offsets`` and so on; an
        order of magnitude faster than record by record.

        Raises and ends as iterating over records does.  Both ways of iterating may alternate.
        """
        return BatchIterator(self)

    async def wait_for_batch(self) -> bool:
        """Wait until there is something to take; False when nothing more comes: the consumer is
        closed, or at its ``stop``.

        Cancelled, it loses nothing.
        """
        if self._is_open and self.at_hand.is_left:
            return True
        batch = await self._next_batch()
        if batch is None:
            return False
        self.at_hand.bring(batch)
        return True

    async def next_record(self) -> Record | None:
        """Wait for the next record; None when nothing more comes.  See ``__aiter__``."""
        while (record := self.at_hand.take_record()) is None:
            if not await self.wait_for_batch():
                return None
        return record

    async def next_batch(self) -> Batch | None:
        """Wait for the next batch; None when nothing more comes.  See ``batches``."""
        while (batch := self.at_hand.take_rest()) is None:
            if not await self.wait_for_batch():
                return None
        return batch

    async def _next_batch(self) -> Batch | None:
        if self._is_iterating:
            raise UsageError("another task is iterating over this consumer")
        if not self._is_open and not self._feeds:
            raise UsageError(f"the consumer is {NOT_OPEN}")
        if self._has_outlived_its_loop:
            raise UsageError(LOOP_HAS_ENDED)
        if get_ident() != self._thread:
            raise UsageError(ANOTHER_LOOP)
        self._is_iterating = True
        try:
            if self._taken_in_a_row >= _RECORDS_PER_TURN or not self._ready:
                # Before anything is taken out: cancelled here, nothing is lost.
                self._taken_in_a_row = 0
                await anyio.lowlevel.checkpoint()
            if self._last_feed is not None:
                self._last_feed.finish()
                self._last_feed = None
            while self._is_open:
                batch = self._take_ready()
                if batch is not None:
                    self._taken_in_a_row += len(batch) + _RECORDS_LIKE_A_BATCH
                    return batch
                if self._options.stop is not None and self._is_at_stop():
                    return None
                await self._wait_for_change()
            return None
        finally:
            self._is_iterating = False

    def _take_ready(self) -> Batch | None:
        """A batch of the first partition in line that has one; it goes to the end."""
        for feed in self._feeds.values():
            cursor = feed.cursor
            if feed.failure is not None and not cursor.has_arrived and not cursor.is_at_stop:
                raise feed.failure.with_traceback(None)
        while self._ready:
            feed = self._ready.popleft()
            feed.is_ready = False
            batch = self._take_from(feed)
            if feed.cursor.has_arrived:
                self._put_in_line(feed)
            if batch is not None:
                self._last_feed = feed
                return batch
        return None

    def _take_from(self, feed: PartitionFeed) -> Batch | None:
        cursor = feed.cursor
        try:
            batch = cursor.next_batch(skips_malformed=self._options.on_malformed == "skip")
        except MalformedBatchError:
            self._put_in_line(feed)
            raise
        except CorruptionError as error:
            feed.on_damaged(error)
            return None
        if batch is not None:
            feed.damaged_count = 0
        if cursor.is_at_stop:
            feed.leave_connection()
        feed.return_credit()
        return batch

    def _is_at_stop(self) -> bool:
        return all(feed.cursor.is_at_stop for feed in self._feeds.values())

    def _put_in_line(self, feed: PartitionFeed) -> None:
        if not feed.is_ready:
            feed.is_ready = True
            self._ready.append(feed)

    async def _wait_for_change(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    # --- what the feeds tell --------------------------------------------------------------

    def on_arrival(self, feed: PartitionFeed) -> None:
        self._put_in_line(feed)
        self._changed.set()

    def on_change(self) -> None:
        self._changed.set()

    @property
    def is_open(self) -> bool:
        return self._is_open

    # --- where it stands ----------------------------------------------------------------

    def position(self, partition: int) -> int | None:
        """Next offset this consumer gives out of ``partition``; None until it is known.

        Raises:
            UsageError: the consumer does not read that partition.
        """
        feed = self._feeds.get(partition)
        if feed is None:
            raise UsageError(f"this consumer reads partitions {list(self._feeds)}")
        position = self.at_hand.position(partition)
        return feed.cursor.position if position is None else position

    @property
    def lag(self) -> int | None:
        """Offsets between the positions and the commit offsets that the brokers told last,
        over all partitions; None while one of them is not known."""
        total = 0
        for partition, feed in self._feeds.items():
            position, commit_offset = self.position(partition), feed.cursor.commit_offset
            if position is None or commit_offset is None:
                return None
            total += max(commit_offset - position, 0)
        return total

    @property
    def trouble(self) -> LogdError | None:
        """What stands in the way of reading some partition just now, if anything does.

        Whoever waits may want to know; it is tried again for as long as the consumer is open.
        """
        for feed in self._feeds.values():
            if feed.trouble is not None:
                return feed.trouble
        return None

    @property
    def malformed_count(self) -> int:
        """Batches skipped because of ``on_malformed="skip"``."""
        return sum(feed.cursor.malformed_count for feed in self._feeds.values())

    # --- connections that fell silent ---------------------------------------------------

    async def _run(self) -> None:
        try:
            with self._scope:
                while True:
                    await anyio.sleep(_QUIET_S)
                    self._probe_quiet()
        finally:
            if self._is_open:  # It was not closed, and nothing comes any more.
                self._has_outlived_its_loop = True
                self._close()

    def _probe_quiet(self) -> None:
        """Ask each quiet connection, about one partition after the other, for something that its
        broker can only answer while it leads: a lost broker does not say that it is lost."""
        now = self._routing.environment.clock()
        probed = [feed.connection for feed in self._feeds.values() if feed.is_probing]
        for feed in sorted(self._feeds.values(), key=attrgetter("quiet_since")):
            connection = feed.connection
            if connection is None or connection in probed or not feed.cursor.is_subscribed:
                continue
            if now < min(
                connection.last_received_at + _QUIET_S, feed.quiet_since + _STANDS_STILL_S
            ):
                continue
            probed.append(connection)
            self._routing.tasks.start_soon(feed.probe, connection)


class RecordIterator:
    """``async for record in consumer``."""

    __slots__ = ("_at_hand", "_consumer")

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._at_hand = consumer.at_hand

    def __aiter__(self) -> RecordIterator:
        return self

    async def __anext__(self) -> Record:
        # The way of nearly every record: not one call more than there has to be.
        at_hand = self._at_hand
        record = next(at_hand.rows, None)
        if record is not None:
            at_hand.last_record = record
            return record
        record = await self._consumer.next_record()
        if record is None:
            raise StopAsyncIteration
        return record


class BatchIterator:
    """``async for batch in consumer.batches()``."""

    __slots__ = ("_consumer",)

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __aiter__(self) -> BatchIterator:
        return self

    async def __anext__(self) -> Batch:
        batch = await self._consumer.next_batch()
        if batch is None:
            raise StopAsyncIteration
        return batch
