"""The consumer: committed records, in order within each partition, from any offset on.

One subscription per partition, at its leader.  What a broker pushes waits in the partition's
``Cursor`` until the caller asks for it; the caller's own task decodes it, so a slow caller
costs nobody anything but the bytes of its credit.  When a subscription ends, for whatever
reason, a short-lived task finds the leader and subscribes again at the exact offset behind
what has arrived.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Final, Literal

import anyio
import anyio.lowlevel

from logd.errors import (
    CorruptionError,
    LogdError,
    MalformedBatchError,
    NotLeaderError,
    OffsetOutOfRangeError,
    ReplicaDamagedError,
    RequestTimeoutError,
    UnavailableError,
    UnknownTopicError,
    UsageError,
)
from logd.limits import KIB, MIB, SUBSCRIPTION_CREDIT_BYTES_MAX
from logd.types import Buffer, GroupId, NodeId
from logd.wire.messages import (
    Deliver,
    OffsetsRequest,
    OffsetsResponse,
    SubscribeResponse,
    SubscriptionEnded,
    UnsubscribeRequest,
)
from logd_client.arguments import require_between, require_int, require_one_of
from logd_client.backoff import Backoff
from logd_client.connection import Answer, Connection, Lane
from logd_client.cursor import Cursor, StartKind
from logd_client.records import Batch, Record
from logd_client.routing import FAILURES_BEFORE_DOUBTING_THE_TOPIC, Routing, partition_of

Start = Literal["earliest", "latest"] | int | datetime
Starts = Start | Mapping[int, Start]
"""One start for all partitions, or each partition's own."""

OnMalformed = Literal["raise", "skip"]
OnTrimmed = Literal["raise", "earliest"]

CREDIT_BYTES_DEFAULT: Final = 8 * MIB
CREDIT_BYTES_MIN: Final = 64 * KIB
"""Less per partition would make deliveries too small to be worth their frames."""

_QUIET_S: Final = 1.0
"""A connection that delivers nothing for this long is asked whether it still works."""

_PROBE_TIMEOUT_S: Final = 1.5
_DAMAGED_DELIVERIES_MAX: Final = 3
"""So many in a row are fetched again, from another replica, before the caller is told."""

OFFSET_MAX: Final = 2**63 - 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerOptions:
    """See ``Client.consumer``."""

    start: Starts = "latest"
    partitions: Sequence[int] | None = None
    from_replica: int | None = None
    credit_bytes: int = CREDIT_BYTES_DEFAULT
    on_malformed: OnMalformed = "raise"
    on_trimmed: OnTrimmed = "raise"

    def __post_init__(self) -> None:
        for start in self.start.values() if isinstance(self.start, Mapping) else [self.start]:
            start_of(start)
        require_between(
            "credit_bytes", self.credit_bytes, CREDIT_BYTES_MIN, SUBSCRIPTION_CREDIT_BYTES_MAX
        )
        require_one_of("on_malformed", self.on_malformed, ("raise", "skip"))
        require_one_of("on_trimmed", self.on_trimmed, ("raise", "earliest"))
        if self.from_replica is not None:
            require_int("from_replica", self.from_replica)
        if self.partitions is not None:
            partitions: object = self.partitions
            if not isinstance(partitions, Sequence):
                raise UsageError(f"partitions must be a list of ints, not {self.partitions!r}")
            if not self.partitions:
                raise UsageError("partitions must not be empty")
        if isinstance(self.start, Mapping):
            if self.partitions is not None:
                raise UsageError("start by partition names the partitions itself: leave them out")
            if not self.start:
                raise UsageError("start by partition must name at least one")
        for number in [*(self.partitions or ()), *_numbers_of(self.start)]:
            require_int("a partition", number)


def _numbers_of(start: Starts) -> Iterable[object]:
    return start if isinstance(start, Mapping) else ()


def start_of(start: Start) -> tuple[StartKind, int]:
    """What a subscription is asked to start with.

    Raises:
        UsageError: not a start; a datetime without a time zone is not a point in time.
    """
    if isinstance(start, datetime):
        if start.utcoffset() is None:
            raise UsageError(f"{start.isoformat()} has no time zone; use an aware datetime")
        # Rounded up: a record appended in the millisecond before is not "at or after".
        return "time", -((_EPOCH - start) // _MILLISECOND)
    if isinstance(start, int) and not isinstance(start, bool):
        if not 0 <= start <= OFFSET_MAX:
            raise UsageError(f"start={start}: offsets are 0 to {OFFSET_MAX}")
        return "offset", start
    if start == "earliest" or start == "latest":
        return start, 0
    raise UsageError(
        f"start={start!r}: expected 'earliest', 'latest', an offset or an aware datetime"
    )


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
        self._feeds: dict[int, _Feed] = {}
        self._ready: deque[_Feed] = deque()
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._is_open = False
        self._is_iterating = False
        self._last_feed: _Feed | None = None
        self._batch: Batch | None = None
        """Given out record by record, not all of it yet."""
        self.rows: Iterator[Record] = iter(())
        """The rest of ``_batch``: what needs no waiting."""
        self.last_record: Record | None = None
        """The last one given out of ``_batch``; set by whoever takes one out of ``rows``."""

    # --- life ---------------------------------------------------------------------------

    async def __aenter__(self) -> Consumer:
        """Subscribe.  With ``start`` "latest" or a time, the position is fixed on return.

        Raises:
            UnknownTopicError, InvalidPartitionError: there is no such topic or partition.
            LogdError: a position could not be found out in time.
        """
        if self._is_open or self._feeds:
            raise UsageError("a consumer is opened once; make another one")
        topic = await self._routing.topic(self._topic)
        starts = self._starts(len(topic.partitions))
        descriptions = [partition_of(topic, number) for number in starts]
        credit_bytes = max(self._options.credit_bytes // len(descriptions), CREDIT_BYTES_MIN)
        for description in descriptions:
            cursor = Cursor(
                topic=self._topic,
                partition=description.partition,
                group=GroupId(description.group),
                start=starts[description.partition],
                credit_bytes=credit_bytes,
                any_replica=self._options.from_replica is not None,
            )
            pinned = self._options.from_replica
            feed = _Feed(self, self._routing, cursor, None if pinned is None else NodeId(pinned))
            feed.leaps_over_trimmed = self._options.on_trimmed == "earliest"
            self._feeds[description.partition] = feed
        self._is_open = True
        self._routing.on_close[self] = self._close
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

    def _starts(self, partition_count: int) -> dict[int, tuple[StartKind, int]]:
        start, partitions = self._options.start, self._options.partitions
        if isinstance(start, Mapping):
            return {number: start_of(start[number]) for number in sorted(start)}
        numbers = range(partition_count) if partitions is None else sorted(set(partitions))
        return {number: start_of(start) for number in numbers}

    async def _wait_for_positions(self, feeds: Sequence[_Feed]) -> None:
        """Wait until it is settled what "latest" or a time means."""
        with anyio.move_on_after(self._routing.request_timeout_s):
            for feed in feeds:
                while feed.cursor.position is None and feed.failure is None:
                    await self._wait_for_change()
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
        self._close()

    async def aclose(self) -> None:
        """End the subscriptions.  Iteration in progress stops."""
        self._close()

    def _close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        self._routing.on_close.pop(self, None)
        self._scope.cancel()
        self.rows = iter(())
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

        Ends when the consumer is closed.
        """
        return RecordIterator(self)

    def batches(self) -> BatchIterator:
        """Iterate over batches, as columns: ``values``, ``keys``, ``offsets`` and so on; an
        order of magnitude faster than record by record.

        Raises and ends as iterating over records does.  Both ways of iterating may alternate.
        """
        return BatchIterator(self)

    def take_buffered(self) -> Record | None:
        """The next record if it needs no waiting, from the batch that is being read."""
        record = next(self.rows, None)
        if record is not None:
            self.last_record = record
        return record

    async def next_record(self) -> Record | None:
        """Wait for the next record; None when the consumer is closed.  See ``__aiter__``."""
        record = next(self.rows, None)
        while record is None:
            self._batch = None
            batch = await self._next_batch()
            if batch is None:
                return None
            self._batch = batch
            self.rows = batch.records()
            record = next(self.rows, None)
        self.last_record = record
        return record

    async def next_batch(self) -> Batch | None:
        """Wait for the next batch; None when the consumer is closed.  See ``batches``."""
        rest = self._rest_of_batch()
        return rest if rest is not None else await self._next_batch()

    def _rest_of_batch(self) -> Batch | None:
        batch, last = self._batch, self.last_record
        self._batch, self.rows, self.last_record = None, iter(()), None
        if batch is None or last is None:
            return batch
        row = bisect_right(batch.offsets, last.offset)
        if row == len(batch):
            return None
        batch.drop_before(row)
        return batch

    async def _next_batch(self) -> Batch | None:
        if self._is_iterating:
            raise UsageError("another task is iterating over this consumer")
        if not self._is_open and not self._feeds:
            raise UsageError("the consumer is not open: use `async with client.consumer(...)`")
        self._is_iterating = True
        try:
            # Before anything is taken out: cancelled here, nothing is lost.
            await anyio.lowlevel.checkpoint()
            if self._last_feed is not None:
                self._last_feed.finish()
                self._last_feed = None
            self.last_record = None
            while self._is_open:
                batch = self._take_ready()
                if batch is not None:
                    return batch
                await self._wait_for_change()
            return None
        finally:
            self._is_iterating = False

    def _take_ready(self) -> Batch | None:
        """A batch of the first partition in line that has one; it goes to the end."""
        for feed in self._feeds.values():
            if feed.failure is not None and not feed.cursor.has_arrived:
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

    def _take_from(self, feed: _Feed) -> Batch | None:
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
        feed.return_credit()
        return batch

    def _put_in_line(self, feed: _Feed) -> None:
        if not feed.is_ready:
            feed.is_ready = True
            self._ready.append(feed)

    async def _wait_for_change(self) -> None:
        await self._changed.wait()
        if self._is_open:
            self._changed = anyio.Event()

    # --- what the feeds tell --------------------------------------------------------------

    def on_arrival(self, feed: _Feed) -> None:
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
        batch, last = self._batch, self.last_record
        if batch is None or batch.partition != partition:
            return feed.cursor.position
        if last is None:
            return batch.base_offset
        return feed.cursor.position if last.offset == batch.last_offset else last.offset + 1

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
        with self._scope:
            while True:
                await anyio.sleep(_QUIET_S)
                await self._probe_quiet()

    async def _probe_quiet(self) -> None:
        """Ask each quiet connection, once, for something that its broker can only answer
        while it leads: a lost broker does not say that it is lost."""
        probed: list[Connection] = []
        now = self._routing.environment.clock()
        for feed in list(self._feeds.values()):
            connection = feed.connection
            if connection is None or connection in probed or not feed.cursor.is_subscribed:
                continue
            if feed.is_probing:
                probed.append(connection)
                continue
            if now < connection.last_received_at + _QUIET_S:
                continue
            probed.append(connection)
            self._routing.tasks.start_soon(feed.probe, connection)


class RecordIterator:
    """``async for record in consumer``."""

    __slots__ = ("_consumer",)

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer

    def __aiter__(self) -> RecordIterator:
        return self

    async def __anext__(self) -> Record:
        # The way of nearly every record: not one call more than there has to be.
        consumer = self._consumer
        record = next(consumer.rows, None)
        if record is not None:
            consumer.last_record = record
            return record
        record = await consumer.next_record()
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


class _Feed:
    """Keeps one partition subscribed."""

    def __init__(
        self, consumer: Consumer, routing: Routing, cursor: Cursor, pinned: NodeId | None
    ) -> None:
        self.cursor = cursor
        self.connection: Connection | None = None
        self.failure: LogdError | None = None
        """Why nothing more can come."""
        self.trouble: LogdError | None = None
        """What stood in the way last."""
        self.is_ready = False
        """In line to be read."""
        self.is_probing = False
        self.damaged_count = 0
        self.leaps_over_trimmed = False
        self._consumer = consumer
        self._routing = routing
        self._pinned = pinned
        self._substitute: NodeId | None = None
        """Read from this replica, because the leader's bytes were damaged."""
        self._suspect: NodeId | None = None
        """Whom we lost last: asked last about who leads."""
        self._is_attaching = False
        self._backoff = Backoff(routing.environment.rng)

    # --- from the connection ------------------------------------------------------------

    def on_delivered(self, message: Deliver, body: Buffer) -> None:
        if self.cursor.on_delivered(message, body):
            self._backoff.reset()
            self._consumer.on_arrival(self)

    def on_ended(self, message: SubscriptionEnded, error: LogdError) -> None:
        if message.generation == self.cursor.generation:
            self._on_refused(error)

    def on_connection_lost(self, connection: Connection, error: LogdError) -> None:
        if connection is self.connection:
            self.trouble = error
            # Its broker may be gone: look who leads now before going back to it.
            self._backoff.failures = max(self._backoff.failures, 1)
            self._suspect = connection.node
            self._resubscribe()

    def _on_refused(self, error: LogdError, *, is_confirmed: bool = False) -> None:
        """The subscription was refused, or has ended.

        ``is_confirmed``: the metadata says it too, not only the broker that was asked.
        """
        self.trouble = error
        if isinstance(error, NotLeaderError):
            leader = None if error.leader is None else NodeId(error.leader)
            self._routing.view.note_leader(self.cursor.group, leader)
        elif isinstance(error, ReplicaDamagedError):
            self._choose_substitute()
        if error.retriable:
            self._resubscribe()
        elif self._is_trimmed(error):
            self.leave_connection()
            self.cursor.leap_to_earliest()
            self.attach_soon()
        elif isinstance(error, UnknownTopicError) and not is_confirmed:
            # The broker may only be behind: look_again asks one that is not.
            self._backoff.failures = max(self._backoff.failures, FAILURES_BEFORE_DOUBTING_THE_TOPIC)
            self._resubscribe()
        else:
            self.leave_connection()
            self.failure = error
            self._consumer.on_change()

    def _is_trimmed(self, error: LogdError) -> bool:
        """What is wanted next was trimmed away, and the caller goes on with what is left."""
        wanted = self.cursor.wanted_offset
        return (
            self.leaps_over_trimmed
            and isinstance(error, OffsetOutOfRangeError)
            and wanted is not None
            and wanted < error.log_start
        )

    def _resubscribe(self) -> None:
        self.leave_connection()
        self.attach_soon()

    def leave_connection(self) -> None:
        """Want nothing more from the present connection."""
        self.cursor.end()
        connection, self.connection = self.connection, None
        if connection is None:
            return
        connection.remove_sink(self.cursor.subscription)
        if connection.is_open:
            request = UnsubscribeRequest(subscription=self.cursor.subscription)
            connection.submit(request, _ignore)

    # --- attaching ----------------------------------------------------------------------

    def attach_soon(self) -> None:
        if not self._is_attaching and self._consumer.is_open:
            self._is_attaching = True
            self._routing.tasks.start_soon(self._attach)

    async def _attach(self) -> None:
        """Subscribe at whoever serves the partition, however long that takes."""
        while self._consumer.is_open and self.failure is None and self.connection is None:
            try:
                connection = await self._find_broker()
            except LogdError as error:
                self._on_refused(error, is_confirmed=True)
                continue
            try:
                await self._subscribe(connection)
            except LogdError as error:
                self._on_refused(error)
        self._is_attaching = False

    async def _find_broker(self) -> Connection:
        failures = self._backoff.failures
        delay_s = self._backoff.next_delay_s()
        if failures:
            await anyio.sleep(delay_s)
            await self._routing.look_again(
                self.cursor.topic, self.cursor.group, failures, self._suspect
            )
            if self._pinned is not None:
                self._routing.require_replica(self.cursor.group, self._pinned)
        node = self._substitute if self._pinned is None else self._pinned
        self.cursor.any_replica = node is not None
        if node is not None:
            self._substitute = None
            return await self._routing.connection(node, Lane.CONSUME)
        return await self._routing.leader_connection(self.cursor.group, Lane.CONSUME, failures)

    async def _subscribe(self, connection: Connection) -> None:
        if not self._consumer.is_open:
            return
        request = self.cursor.subscribe(self._routing.next_subscription())
        outcome = _SubscribeOutcome()
        connection.add_sink(request.subscription, self)
        self.connection = connection
        sent_at = self._routing.environment.clock()
        connection.submit(request, partial(self._on_answer, outcome, request.generation))
        with anyio.move_on_after(self._routing.request_timeout_s):
            await outcome.settled.wait()
        if outcome.error is not None:
            raise outcome.error
        if not outcome.settled.is_set():
            error = RequestTimeoutError(f"{connection.name} does not answer a subscription")
            connection.fail_if_silent_since(sent_at, error)
            raise error
        self.trouble = None
        self._consumer.on_change()

    def _on_answer(
        self, outcome: _SubscribeOutcome, generation: int, answer: Answer | LogdError
    ) -> None:
        # In the reader's task: deliveries may follow in the same piece of received bytes.
        if isinstance(answer, LogdError):
            outcome.error = answer
        else:
            assert isinstance(answer.message, SubscribeResponse)
            self.cursor.on_subscribed(generation, answer.message)
            if self.cursor.has_arrived:
                self._consumer.on_arrival(self)
        outcome.settled.set()

    # --- reading ------------------------------------------------------------------------

    def finish(self) -> None:
        """The caller has read what it was given."""
        self.cursor.finish()
        self.return_credit()

    def return_credit(self) -> None:
        if self.connection is None:
            return
        credit = self.cursor.take_credit()
        if credit is not None:
            self.connection.post_credit(credit)

    def on_damaged(self, error: CorruptionError) -> None:
        """What arrived is not what was written: get it from another replica.

        Raises:
            CorruptionError: several replicas in a row delivered damaged bytes.
        """
        source = "a lost connection" if self.connection is None else self.connection.name
        self.damaged_count += 1
        self.trouble = error
        self.cursor.restart_at_position()
        self._choose_substitute()
        self._resubscribe()
        if self.damaged_count >= _DAMAGED_DELIVERIES_MAX:
            self.damaged_count = 0
            where = f"{self.cursor.topic}/{self.cursor.partition}"
            raise CorruptionError(f"{where} from {source}: {error}") from error

    def _choose_substitute(self) -> None:
        replicas = self._routing.view.replicas(self.cursor.group)
        asked = None if self.connection is None else self.connection.node
        others = [node for node in replicas if node != asked]
        self._substitute = others[self.damaged_count % len(others)] if others else None

    # --- probing ------------------------------------------------------------------------

    async def probe(self, connection: Connection) -> None:
        """Find out whether ``connection`` still leads to a broker that serves us."""
        request = OffsetsRequest(group=self.cursor.group, any_replica=self.cursor.any_replica)
        self.is_probing = True
        try:
            await connection.request(request, OffsetsResponse, _PROBE_TIMEOUT_S)
        except LogdError as error:
            # Silence has ended the connection by now.  A broker that stepped down says so.
            if isinstance(error, NotLeaderError) and connection is self.connection:
                self._on_refused(error)
        finally:
            self.is_probing = False


class _SubscribeOutcome:
    """One subscribe request's answer."""

    __slots__ = ("error", "settled")

    def __init__(self) -> None:
        self.error: LogdError | None = None
        self.settled = anyio.Event()


def _ignore(answer: Answer | LogdError) -> None:
    """The answer changes nothing."""
