"""The producer for programs that block.

What nobody waits for is handed over: a thread that waited for the event loop's with each of its
records could make a few thousand a second.  It is checked where it is appended, and put down
where the event loop takes it up with all that has come by then.  What waits there is bounded,
and whatever the same thread asks for afterwards is done behind it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import anyio

from logd.errors import InvalidPartitionError, LogdError, UsageError, WouldBlock
from logd.limits import MIB
from logd_client.coordination.fences import Fence, HasFence, fence_of
from logd_client.delivery import Ack, AckRange, Failures
from logd_client.delivery import Ticket as AsyncTicket
from logd_client.portal import Entered, Portal
from logd_client.producer import Producer as AsyncProducer

HANDED_OVER_BYTES_MAX: Final = 1 * MIB
"""Records on their way into the event loop's thread, counted as in the producer's buffer; a
single record may be larger."""

T = TypeVar("T")


class Ticket:
    """See ``logd_client.Ticket``."""

    __slots__ = ("_error", "_producer", "_queued", "is_unheard")

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._queued: AsyncTicket | None = None
        """None: it is still on its way, or has failed there."""
        self._error: LogdError | None = None
        self.is_unheard = True
        """Nobody has been told why it could not be queued."""

    @property
    def is_on_its_way(self) -> bool:
        """The event loop's thread has not taken it up yet."""
        return self._queued is None and self._error is None

    @property
    def is_done(self) -> bool:
        queued = self._queued
        return self._error is not None or (queued is not None and queued.is_done)

    def result(self) -> Ack:
        """Wait for the acknowledgement, or raise the record's error."""
        outcome = self.outcome()
        return outcome if isinstance(outcome, Ack) else self._producer.wait_for(self)

    def outcome(self) -> Ack | LogdError | None:
        """What is known by now; whoever looks counts as nobody who has heard of it."""
        return self._error if self._queued is None else self._queued.outcome()

    async def wait(self) -> Ack:
        """``result``, in the event loop's thread, once it is not on its way any more."""
        if self._error is not None:
            self.is_unheard = False
            raise self._error.with_traceback(None)
        assert self._queued is not None
        return await self._queued

    def queue(self, queued: AsyncTicket) -> None:
        self._queued = queued

    def fail(self, error: LogdError) -> None:
        self._error = error


class Producer(Entered):
    """See ``logd_client.Producer``."""

    def __init__(self, portal: Portal, producer: AsyncProducer) -> None:
        super().__init__(portal, producer)
        self._producer = producer
        self._lock = threading.RLock()
        """Of the threads that hand over.  One that has it may stand still in a signal's handler: so
        the event loop's thread never waits for it, and that handler may take it again."""
        self._handed: deque[tuple[Ticket, int, bytes | None, dict[str, Any]]] = deque()
        self._handed_bytes = 0
        """Of all that ever was handed over."""
        self._taken_bytes = 0
        """Of what the event loop's thread has taken up of it."""
        self._is_told = False
        """The event loop is about to look at what is handed over."""
        self._taking = anyio.Lock()
        self._waits_for_room = False
        """Whoever is taking what was handed over."""
        self._refused = Failures[Ticket]()
        """Those that could not be queued when their turn came."""

    def open(self) -> Self:
        super().open()
        self._portal.entered[self] = None
        return self

    def append(
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
        return self._call_behind(
            partial(
                self._producer.append,
                value,
                key=key,
                headers=headers,
                timestamp_ms=timestamp_ms,
                partition=partition,
                expected_offset=expected_offset,
                fence=fence,
            )
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
        """The record is queued; ``ticket.result()`` waits for its acknowledgement."""
        given = _given(key, headers, timestamp_ms, partition, fence)
        size = self._producer.check(value, **given)
        ticket = Ticket(self)
        while not self._hand_over(ticket, size, value, given):
            if not self._portal.call(self._take_what_fits):
                waiting = self._handed_bytes - self._taken_bytes
                raise WouldBlock(
                    f"the producer's buffer has no room, and {waiting} bytes wait for it"
                )
        return ticket

    def enqueue(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        timestamp_ms: int | None = None,
        partition: int | None = None,
        fence: Fence | HasFence | None = None,
    ) -> Ticket:
        """As ``append_nowait``, but it waits for room."""
        given = _given(key, headers, timestamp_ms, partition, fence)
        ticket = Ticket(self)
        try:
            size = self._producer.check(value, **given)
        except InvalidPartitionError:  # It may have been added since: the cluster is asked.
            ticket.queue(self._call_behind(partial(self._enqueue, value, given)))
            return ticket
        while not self._hand_over(ticket, size, value, given):
            self._portal.call(self._take_in)
        return ticket

    async def _enqueue(self, value: bytes | None, given: dict[str, Any]) -> AsyncTicket:
        # Not handed to the portal itself, which awaits whatever awaitable it is handed.
        return await self._producer.enqueue(value, **given)

    def append_many(
        self,
        values: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        keys: Sequence[bytes | None] | None = None,
        timestamp_ms: int | None = None,
        partition: int | None = None,
        fence: Fence | HasFence | None = None,
    ) -> tuple[AckRange, ...]:
        return self._call_behind(
            partial(
                self._producer.append_many,
                values,
                key=key,
                keys=keys,
                timestamp_ms=timestamp_ms,
                partition=partition,
                fence=fence,
            )
        )

    def raise_fence(self, lease: Fence | HasFence) -> dict[int, int]:
        return self._call_behind(partial(self._producer.raise_fence, lease))

    @property
    def trouble(self) -> LogdError | None:
        return self._portal.call(lambda: self._producer.trouble)

    def flush(self) -> None:
        self._call_behind(self._flush)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._portal.entered.pop(self, None)
        if kind is None:
            try:
                if self._portal.is_closed:
                    self._require_settled()
                else:
                    self.flush()
            except BaseException as failure:
                self._leave(type(failure), failure, failure.__traceback__)
                raise
        return self._leave(kind, error, traceback)

    def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        is_swallowed = super().__exit__(kind, error, traceback)
        if self._portal.leads_somewhere:
            # Whoever holds a ticket of what is still handed over is told that it came too late.
            self._portal.call(self._take_in)
        return is_swallowed

    def _require_settled(self) -> None:
        """What was given up because the client was closed is not to be lost without a word."""
        self._producer.require_settled()
        if self._handed:
            raise UsageError("the client was closed before the record was queued")
        refused = self._refused.take()
        if refused is not None:
            refused.result()

    def wait_for(self, ticket: Ticket) -> Ack:
        """As ``Ticket.result``."""
        if self._portal.leads_somewhere:
            wait = self._call_behind if ticket.is_on_its_way else self._portal.call
            return wait(ticket.wait)
        outcome = ticket.outcome()
        if outcome is None:
            outcome = self._portal.refusal()
            outcome.may_have_applied = True
        if isinstance(outcome, LogdError):
            raise outcome.with_traceback(None)
        return outcome

    # --- handing over -------------------------------------------------------------------------

    def _hand_over(
        self, ticket: Ticket, size: int, value: bytes | None, given: dict[str, Any]
    ) -> bool:
        """False if there is no room.

        A signal's handler may raise after any call that is made here: then the record is handed
        over, or it is not, and whoever takes it in is told, or will be with the next.
        """
        if self._portal.is_elsewhere:  # And another thread may have had the lock.
            raise self._portal.refusal()
        if "headers" in given:  # Its caller may go on changing the list.
            given["headers"] = tuple(given["headers"])
        with self._lock:
            waiting = self._handed_bytes - self._taken_bytes
            if self._handed and waiting + size > HANDED_OVER_BYTES_MAX:
                return False
            self._handed_bytes += size
            self._handed.append((ticket, size, value, given))
        if not self._is_told:
            self._is_told = True
            try:
                self._portal.start(self._take_in_all)
            except BaseException:
                self._is_told = False
                raise
        return True

    def _call_behind(self, function: Callable[[], Awaitable[T]]) -> T:
        """Call ``function`` in the event loop's thread, behind what was handed over before."""

        async def call() -> T:
            await self._take_in()
            return await function()

        return self._portal.call(call if self._handed else function)

    # --- in the event loop's thread -------------------------------------------------------------

    async def _take_in_all(self) -> None:
        while True:
            await self._take_in()
            # Whoever hands over from here on tells it again.
            self._is_told = False
            if not self._handed:
                return
            self._is_told = True

    async def _take_in(self) -> None:
        """Queue what is handed over by now, waiting for room.  Cancelled, the rest stays."""
        async with self._taking:
            for _ in range(len(self._handed)):
                if self._take_first():
                    continue
                _, _, value, given = self._handed[0]
                self._waits_for_room = True
                try:
                    queued = await self._producer.enqueue(value, **given)
                except LogdError as error:
                    self._first_is_refused(error)
                else:
                    self._first_is_queued(queued)
                finally:
                    self._waits_for_room = False

    def _take_what_fits(self) -> bool:
        """Queue what is handed over; False if there is no room for all of it."""
        while self._handed:
            if self._waits_for_room or not self._take_first():
                return False
        return True

    def _take_first(self) -> bool:
        """Queue the first that is handed over; False if there is no room."""
        _, _, value, given = self._handed[0]
        try:
            queued = self._producer.append_nowait(value, **given)
        except WouldBlock:
            return False
        except LogdError as error:
            self._first_is_refused(error)
        else:
            self._first_is_queued(queued)
        return True

    def _first_is_queued(self, queued: AsyncTicket) -> None:
        self._handed[0][0].queue(queued)
        self._drop_first()

    def _first_is_refused(self, error: LogdError) -> None:
        ticket = self._handed[0][0]
        ticket.fail(error)
        self._refused.note(ticket)
        self._drop_first()

    def _drop_first(self) -> None:
        _, size, _, _ = self._handed.popleft()
        self._taken_bytes += size

    async def _flush(self) -> None:
        await self._producer.flush()
        refused = self._refused.take()
        if refused is not None:
            await refused.wait()


def _given(
    key: bytes | None,
    headers: Sequence[tuple[str, bytes]],
    timestamp_ms: int | None,
    partition: int | None,
    fence: Fence | HasFence | None,
) -> dict[str, Any]:
    """The arguments that say something: a record that has none is the quickest to append."""
    given: dict[str, Any] = {}
    if key is not None:
        given["key"] = key
    if headers:
        given["headers"] = headers
    if timestamp_ms is not None:
        given["timestamp_ms"] = timestamp_ms
    if partition is not None:
        given["partition"] = partition
    if fence is not None:
        given["fence"] = fence_of(fence)  # As it is now: a lease may be over a moment later.
    return given
