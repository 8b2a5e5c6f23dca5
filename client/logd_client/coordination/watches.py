"""Watches: what changes, in order, each change once, from a revision on.

A broker pushes events as far as our credit goes and says up to which revision it has told
everything.  When a connection ends, or its broker leads no more, the watch begins again behind
that revision at whoever leads: nothing is skipped and nothing told twice.  A silent broker is
asked whether it still leads: one that is gone does not say so.

What the brokers no longer have in memory cannot be told: ``CompactedError`` names the oldest
revision from which a watch can begin.  Whoever watches only to know when to look again is told of
a *gap* instead, and looks.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Final

import anyio
import anyio.lowlevel
import msgspec

from logd.errors import CompactedError, LogdError, ProtocolError, UnavailableError, UsageError
from logd.limits import MIB
from logd.types import Buffer, GroupId, NodeId
from logd.wire.coordination import Event, Kind
from logd.wire.messages import (
    KeepAliveRequest,
    UnwatchRequest,
    WatchCredit,
    WatchEnded,
    WatchEvents,
    WatchRequest,
    WatchResponse,
)
from logd_client.backoff import Backoff
from logd_client.connection import Answer, Connection, Lane
from logd_client.coordination.calls import ATTEMPT_TIMEOUT_S, Calls

CREDIT_BYTES: Final = MIB
"""What a broker may send ahead of the caller, for one watch."""

QUIET_S: Final = 2.0
PROBE_TIMEOUT_S: Final = 2.0
GAP: Final = "gap"
"""The change of an event that stands for those that were missed."""

_EVENTS: Final = msgspec.msgpack.Decoder(list[Event])


class Watch:
    """Events of one kind.  Use as ``async with … as watch`` and iterate.

    Iterating goes on across leader changes and lost connections for as long as it takes.
    Cancelled, it loses no event.  Only one task may iterate at a time.
    """

    def __init__(
        self,
        calls: Calls,
        namespace: str,
        kind: Kind,
        start: bytes,
        end: bytes | None,
        revision: int | None,
        *,
        tells_gaps: bool = False,
    ) -> None:
        if revision is not None and revision < 0:
            raise UsageError(f"revisions are not negative, found {revision}")
        self._calls = calls
        self._routing = calls.routing
        self._namespace = namespace
        self._kind: Kind = kind
        self._tells_gaps = tells_gaps
        self._start = start
        self._end = end
        self._resume_at = revision
        """The first revision whose events have not arrived; None: from now on."""
        self._arrived: deque[tuple[list[Event], int]] = deque()
        """Pushes with their size in bytes."""
        self._buffered_bytes = 0
        self._ready: deque[Event] = deque()
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._is_open = False
        self._is_over = False
        self._watch = 0
        self._generation = 0
        self._connection: Connection | None = None
        self._attached = anyio.Event()
        self._detached = anyio.Event()
        self._why_detached: LogdError | None = None
        self._suspect: NodeId | None = None
        self._failure: LogdError | None = None
        self._backoff = Backoff(self._routing.environment.rng)
        self.trouble: LogdError | None = None
        """What stands in the way of hearing more, if anything does; it is tried again."""

    # --- life ---------------------------------------------------------------------------

    async def __aenter__(self) -> Watch:
        """Begin.  What changes from then on will be told.

        Raises:
            CompactedError: the revision is no longer kept; has ``oldest``.
            LogdError: it could not begin within the client's request timeout.
        """
        if self._is_open or self._is_over:
            raise UsageError("a watch is opened once; make another one")
        self._is_open = True
        self._routing.on_close[self] = self._close
        self._routing.tasks.start_soon(self._run)
        try:
            with anyio.move_on_after(self._routing.request_timeout_s):
                await self._attached.wait()
            if self._failure is not None:
                raise self._failure
            if not self._attached.is_set():
                raise self.trouble or UnavailableError(f"no broker serves {self._namespace}")
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def aclose(self) -> None:
        """End the watch.  Iteration in progress stops."""
        self._close()

    def _close(self) -> None:
        self._is_over = True
        self._is_open = False
        self._routing.on_close.pop(self, None)
        self._scope.cancel()
        self._leave()
        self._changed.set()

    # --- iterating ----------------------------------------------------------------------

    def __aiter__(self) -> Watch:
        """Iterate over events, in order of their revisions.

        Raises, while iterating:
            CompactedError: this watch was away for so long that events were dropped; read the
                state and watch from its revision.
        """
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def next(self) -> Event | None:
        """Wait for the next event; None when the watch is closed."""
        if not self._is_open and not self._is_over:
            raise UsageError("the watch is not open: use `async with`")
        await anyio.lowlevel.checkpoint()  # Before anything is taken: cancelled, nothing is lost.
        while True:
            event = self.take_arrived()
            if event is not None:
                return event
            if self._failure is not None:
                raise self._failure.with_traceback(None)
            if self._is_over:
                return None
            await self._changed.wait()

    def take_arrived(self) -> Event | None:
        """The next event if it has arrived already."""
        if not self._ready and self._arrived:
            events, size = self._arrived.popleft()
            self._ready.extend(events)
            self._buffered_bytes -= size
            self._return_credit(size)
        if self._ready:
            return self._ready.popleft()
        if self._is_open and self._failure is None and self._changed.is_set():
            self._changed = anyio.Event()
        return None

    def _return_credit(self, size: int) -> None:
        if self._connection is not None and size:
            self._connection.post_credit(
                WatchCredit(watch=self._watch, generation=self._generation, bytes=size)
            )

    # --- from the connection ------------------------------------------------------------

    def on_events(self, message: WatchEvents, body: Buffer) -> None:
        """A push arrived."""
        if message.generation != self._generation:
            return
        try:
            events = _EVENTS.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._detach(ProtocolError(f"events cannot be read: {error}"))
            return
        self._resume_at = max(self._resume_at or 0, message.revision + 1)
        self._backoff.reset()
        self._arrived.append((events, len(body)))
        self._buffered_bytes += len(body)
        self._changed.set()

    def on_ended(self, message: WatchEnded, error: LogdError) -> None:
        """The broker pushes no more."""
        if message.generation == self._generation:
            self._detach(error)

    def on_connection_lost(self, connection: Connection, error: LogdError) -> None:
        """Nothing more can come from there."""
        if connection is self._connection:
            self._detach(error)

    def _detach(self, error: LogdError) -> None:
        if self._why_detached is None:
            self._why_detached = error
        self._detached.set()

    # --- staying attached -----------------------------------------------------------------

    async def _run(self) -> None:
        with self._scope:
            while self._failure is None:
                try:
                    group = await self._attach()
                    await self._stay(group)
                except LogdError as error:
                    self._on_trouble(error)
                finally:
                    self._leave()

    def _on_trouble(self, error: LogdError) -> None:
        self.trouble = error
        if isinstance(error, CompactedError) and self._tells_gaps:
            gap = Event(revision=0, kind=self._kind, name=self._start, change=GAP)
            self._arrived.append(([gap], 0))
            self._resume_at = None
            self._changed.set()
            return
        if not error.retriable or isinstance(error, CompactedError):
            self._failure = error
            self._attached.set()
            self._changed.set()

    async def _attach(self) -> GroupId:
        """Watch at whoever leads the namespace's partition now."""
        failures = self._backoff.failures
        delay_s = self._backoff.next_delay_s()
        group = await self._calls.group_of(self._namespace)
        if failures:
            await anyio.sleep(delay_s)
        connection = await self._calls.find_leader(group, Lane.COORDINATE, failures, self._suspect)
        self._suspect = connection.node
        self._watch = self._routing.next_subscription()
        self._generation += 1
        self._detached = anyio.Event()
        self._why_detached = None
        self._connection = connection
        connection.add_watch(self._watch, self)
        request = WatchRequest(
            watch=self._watch,
            generation=self._generation,
            group=group,
            namespace=self._namespace,
            kind=self._kind,
            start=self._start,
            end=self._end,
            revision=self._resume_at,
            credit_bytes=max(CREDIT_BYTES - self._buffered_bytes, 1),
        )
        answer: Answer = await connection.exchange(request, b"", 2 * ATTEMPT_TIMEOUT_S)
        assert isinstance(answer.message, WatchResponse)
        # Events may have arrived with the answer, and tell more.
        self._resume_at = max(self._resume_at or 0, answer.message.revision + 1)
        self.trouble = None
        self._attached.set()
        return group

    async def _stay(self, group: GroupId) -> None:
        """Listen until the broker ends it, or is found out not to lead any more."""
        connection = self._connection
        assert connection is not None
        while True:
            with anyio.move_on_after(QUIET_S):
                await self._detached.wait()
            if self._why_detached is not None:
                raise self._why_detached
            self._backoff.reset()
            if self._calls.clock() >= connection.last_received_at + QUIET_S:
                # Answered by a leader only, whose leadership was confirmed.
                probe = KeepAliveRequest(group=group, sessions=[])
                await connection.exchange(probe, b"", PROBE_TIMEOUT_S)

    def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.remove_watch(self._watch)
        if connection.is_open:
            connection.submit(UnwatchRequest(watch=self._watch), _ignore)


def _ignore(answer: Answer | LogdError) -> None:
    """The answer changes nothing."""
