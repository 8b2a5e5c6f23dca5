"""The fate of one batch, and what its records' callers get from it.

All records of a batch share one outcome and one event, so that a record costs its caller
two small objects, however long it takes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import repeat
from operator import add, sub
from threading import get_ident
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from logd.errors import LogdError, PartialAppendError, UsageError
from logd.wire.messages import Durability, ProduceResponse
from logd_client.arguments import ANOTHER_LOOP
from logd_client.event_loop import Event, new_event

UNHEARD_MAX: Final = 1_000
"""Failures that are kept for a flush to tell of.  If nobody has heard of so many, it can tell of
the first whatever else fails."""

_HEARD_MAX: Final = 16
"""So many of those that have been heard of may be kept with them, if those are no more."""


class Ack(NamedTuple):
    """One record is committed."""

    topic: str
    partition: int
    offset: int
    append_time_ms: int
    """When the leader appended it, in milliseconds since 1970-01-01T00:00Z."""
    durability: Durability
    """What "committed" meant: synced on a majority, or in memory on a majority."""


class AckRange(msgspec.Struct, frozen=True, gc=False):
    """Consecutive records of one ``append_many`` are committed at consecutive offsets.

    With keys there may be nearly as many as records.
    """

    topic: str
    partition: int
    base_offset: int
    count: int
    append_time_ms: int
    durability: Durability


class Delivery:
    """One batch from the moment it is queued until it is acknowledged or failed.

    Made in the thread in which that will happen.
    """

    __slots__ = ("_event", "_thread", "error", "partition", "response", "topic", "unawaited_count")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.response: ProduceResponse | None = None
        self.error: LogdError | None = None
        self.unawaited_count = 0
        """Tickets that were given out and not awaited so far: a failure has no hearer yet."""
        self._event: Event | None = None
        self._thread = get_ident()

    @property
    def is_settled(self) -> bool:
        return self.response is not None or self.error is not None

    @property
    def is_unheard(self) -> bool:
        """Somebody has a ticket, and would not know if it had failed."""
        return self.unawaited_count > 0

    def succeed(self, response: ProduceResponse) -> None:
        assert not self.is_settled
        self.response = response
        if self._event is not None:
            self._event.set()

    def fail(self, error: LogdError) -> None:
        assert not self.is_settled
        self.error = error
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait until it is settled.  Cancelling changes nothing about the batch.

        Raises:
            UsageError: it is not settled, and this is another thread, which nothing would wake.
        """
        if self.is_settled:
            return
        if get_ident() != self._thread:
            error = UsageError(ANOTHER_LOOP)
            error.may_have_applied = True
            raise error
        if self._event is None:
            self._event = new_event()
        await self._event.wait()

    def ack(self, position: int) -> Ack:
        """The acknowledgement of the record at ``position`` in the batch, or its error."""
        response = self._outcome()
        return Ack(
            self.topic,
            self.partition,
            response.base_offset + position,
            response.append_time_ms,
            response.durability,
        )

    def _outcome(self) -> ProduceResponse:
        if self.error is not None:
            # Raised once per record: without this each raise would add to the traceback.
            raise self.error.with_traceback(None)
        assert self.response is not None
        return self.response


class Ticket:
    """A record that was queued: ``await ticket`` gives its ``Ack`` or raises its error.

    May be awaited any number of times, by several tasks of the event loop in which the producer
    is.  Cancelling the wait does not recall the record.
    """

    __slots__ = ("_delivery", "_is_counted", "_is_heard", "_position")

    def __init__(self, delivery: Delivery, position: int) -> None:
        """It counts among the unawaited until it is awaited."""
        self._delivery = delivery
        self._position = position
        self._is_counted = True
        self._is_heard = False
        """Somebody has awaited it to the end."""
        delivery.unawaited_count += 1

    @property
    def is_done(self) -> bool:
        """The record is acknowledged or has failed; awaiting does not wait."""
        return self._delivery.is_settled

    def __await__(self) -> Generator[object, object, Ack]:
        return self._wait().__await__()

    async def _wait(self) -> Ack:
        # From now on: who flushes beside us need not be told what we are about to hear.
        self._count(is_unawaited=False)
        try:
            await self._delivery.wait()
        except BaseException:  # We have heard nothing, though another may have.
            self._count(is_unawaited=not self._is_heard)
            raise
        self._is_heard = True
        if self._is_counted:  # Another has stopped waiting since.
            self._count(is_unawaited=False)
        return self._delivery.ack(self._position)

    def _count(self, *, is_unawaited: bool) -> None:
        if is_unawaited != self._is_counted:
            self._is_counted = is_unawaited
            self._delivery.unawaited_count += 1 if is_unawaited else -1

    def outcome(self) -> Ack | LogdError | None:
        """What became of the record, None if that is not known yet.  It does not wait, and whoever
        looks counts as nobody who has heard of it."""
        if self._delivery.error is not None:
            return self._delivery.error
        return None if self._delivery.response is None else self._delivery.ack(self._position)


class Failure(Protocol):
    """Something that has failed."""

    @property
    def is_unheard(self) -> bool:
        """Nobody knows yet who should."""


F = TypeVar("F", bound=Failure)


class Failures(Generic[F]):
    """What has failed, for a flush to tell of the first that nobody has heard of."""

    def __init__(self) -> None:
        self._failed: list[F] = []
        self._look_at = _HEARD_MAX

    def note(self, failure: F) -> None:
        """Also of what somebody waits for just now: that may end before the failure is heard of."""
        if len(self._failed) >= self._look_at:
            # An error holds on to all through which it was raised.
            self._failed = [failed for failed in self._failed if failed.is_unheard]
            self._look_at = min(max(_HEARD_MAX, 2 * len(self._failed)), UNHEARD_MAX)
        if len(self._failed) < UNHEARD_MAX:
            self._failed.append(failure)

    def take(self) -> F | None:
        """The first that nobody has heard of, since this was asked last."""
        failed, self._failed = self._failed, []
        return next((failure for failure in failed if failure.is_unheard), None)


class ManyDeliveries:
    """What becomes of the records of one ``append_many``, by input position."""

    def __init__(self) -> None:
        self._batches: list[tuple[Sequence[int], Delivery, int]] = []
        self._failures: list[tuple[int, int, LogdError]] = []

    def add_batch(self, positions: Sequence[int], delivery: Delivery, first: int) -> None:
        """The inputs at ``positions``, increasing, travel in one batch, from row ``first`` on."""
        self._batches.append((positions, delivery, first))

    def add_failure(self, position: int, error: LogdError) -> None:
        """The input at ``position`` cannot travel at all."""
        self._failures.append((position, position + 1, error))

    def add_failures(self, positions: Sequence[int], error: LogdError) -> None:
        """The inputs at ``positions``, increasing, were not queued."""
        rows = _run_starts(positions)
        starts = [positions[row] for row in rows]
        lengths = _run_lengths(rows, len(positions))
        self._failures += zip(starts, map(add, starts, lengths), repeat(error), strict=False)

    async def wait(self) -> tuple[AckRange, ...]:
        """Wait for every batch; the acknowledged ranges in input order.

        Raises:
            PartialAppendError: some failed; has both.
        """
        acks: dict[int, AckRange] = {}
        for positions, delivery, first in self._batches:
            await delivery.wait()
            if delivery.error is not None:
                self.add_failures(positions, delivery.error)
                continue
            response = delivery.response
            assert response is not None
            rows = _run_starts(positions)
            ranges_of_batch = map(
                AckRange,
                repeat(delivery.topic),
                repeat(delivery.partition),
                map(add, rows, repeat(response.base_offset + first)),
                _run_lengths(rows, len(positions)),
                repeat(response.append_time_ms),
                repeat(response.durability),
            )
            acks.update(zip(map(positions.__getitem__, rows), ranges_of_batch, strict=True))
        ranges = tuple(map(acks.__getitem__, sorted(acks)))
        if self._failures:
            self._failures.sort(key=lambda failure: failure[0])
            raise PartialAppendError(ranges, tuple(self._failures))
        return ranges


def _run_starts(positions: Sequence[int]) -> list[int]:
    """Where each run of consecutive ones begins among them.  With keys there may be as many as
    records: all that is done for each is done in C."""
    if isinstance(positions, range):
        return [0]
    steps = map(sub, positions[1:], positions)
    return [0, *[row for row, step in enumerate(steps, 1) if step != 1]]


def _run_lengths(rows: Sequence[int], count: int) -> Iterator[int]:
    """How long each of the runs is, of ``count`` positions."""
    return map(sub, [*rows[1:], count], rows)
