"""Feeds: what a broker pushes about one range of names, for all who watch it in this client.

Tasks of one program often watch the same: a barrier, a leader, a switch.  Those that want to know
what changes from now on share a feed, so the broker pushes once for all of them, and a push is
read once.  A watch that begins at a revision of its own has a feed of its own.

A broker pushes as far as our credit goes.  It is given back as soon as the first of those who
share has taken a push: who iterates slowly must not hold up the others.  One that has fallen
behind by as much as a feed may be ahead goes on with a feed of its own, from where it is.

When a connection ends, or its broker leads no more, the feed begins again behind the last
revision at whoever leads: nothing is skipped and nothing told twice.  A silent broker is asked
whether it still leads: one that is gone does not say so.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple, Protocol

import anyio
import msgspec

from logd.errors import CompactedError, LogdError, ProtocolError, UnknownTopicError
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
"""What a broker may send ahead of whoever takes it first."""

_CREDIT_SHARE: Final = 4
"""Credit is returned when this part of it, one in so many, has been used up."""

QUIET_S: Final = 2.0
PROBE_TIMEOUT_S: Final = 2.0
GAP: Final = "gap"
"""The change of an event that stands for those that were missed."""

_EVENTS: Final = msgspec.msgpack.Decoder(list[Event])


class Subject(NamedTuple):
    """What is watched, and how."""

    namespace: str
    kind: Kind
    start: bytes
    end: bytes | None
    tells_gaps: bool


class Push(NamedTuple):
    """Events that arrived together."""

    feed: Feed
    number: int
    """From 1; 0: it was made here, and nobody gave credit for it."""
    events: list[Event]
    size: int


class Listener(Protocol):
    """Who a feed tells.  Called where it is received."""

    def on_pushed(self, push: Push) -> bool:
        """Take it in; False if more lies here than a feed may be ahead."""

    def on_failed(self, error: LogdError) -> None:
        """Nothing more will come."""

    def move_to(self, feed: Feed) -> None:
        """What comes next comes from there."""


class Feed:
    """One watch at a broker.  Lives for as long as somebody listens."""

    def __init__(self, calls: Calls, subject: Subject, resume_at: int | None) -> None:
        self._calls = calls
        self._routing = calls.routing
        self._subject = subject
        self._resume_at = resume_at
        """The first revision whose events have not arrived; None: from now on."""
        self._told_in_part = 0
        """So many events of that revision have, if it is one that is told in parts."""
        self._to_skip = 0
        """So many of them come again, since the watch has begun anew."""
        self._owes_gap = False
        """Events were missed, and those who listen have not been told yet."""
        self._listeners: dict[Listener, None] = {}
        self._pushed = 0
        self._owed: deque[int] = deque()
        """Sizes of the last pushes, which nobody has taken."""
        self._owed_bytes = 0
        self._due_bytes = 0
        """Taken, and not returned to the broker yet."""
        self._scope = anyio.CancelScope()
        self._watch = 0
        self._generation = 0
        self._connection: Connection | None = None
        self._has_begun = False
        """The broker has taken the watch: it drops credit that comes before."""
        self._detached = anyio.Event()
        self._why_detached: LogdError | None = None
        self._suspect: NodeId | None = None
        self._backoff = Backoff(self._routing.environment.rng)
        self.attached = anyio.Event()
        """It has been, or has failed."""
        self.failure: LogdError | None = None
        self.trouble: LogdError | None = None
        """What stands in the way of hearing more, if anything does; it is tried again."""

    @classmethod
    def of(cls, calls: Calls, subject: Subject) -> tuple[Feed, bool]:
        """What tells of ``subject`` from now on, and whether others listen to it already."""
        feed = calls.feeds.get(subject)
        if feed is not None:
            return feed, True
        feed = calls.feeds[subject] = cls(calls, subject, None)
        return feed, False

    def _forget(self) -> None:
        """It has ended: nobody joins it any more."""
        if self._calls.feeds.get(self._subject) is self:
            del self._calls.feeds[self._subject]

    # --- those who listen ---------------------------------------------------------------

    def join(self, listener: Listener) -> None:
        """``listener`` is told all that arrives from now on.  The first begins the feed."""
        if not self._listeners:
            self._routing.tasks.start_soon(self._run)
        self._listeners[listener] = None

    def leave(self, listener: Listener) -> None:
        """``listener`` is told nothing more.  The last ends the feed."""
        self._listeners.pop(listener, None)
        if not self._listeners:
            self._forget()
            self._scope.cancel()
            self._detach_here()

    def taken(self, push: Push) -> None:
        """Somebody has taken ``push``: who did so first gives the credit back."""
        count = push.number - (self._pushed - len(self._owed))
        if count <= 0:
            return
        size = sum(self._owed.popleft() for _ in range(count))
        self._owed_bytes -= size
        self._return_credit(size)

    def _return_credit(self, size: int) -> None:
        """Once it is enough to be worth a frame."""
        self._due_bytes += size
        if self._connection is None or not self._has_begun:
            return
        if self._due_bytes >= CREDIT_BYTES // _CREDIT_SHARE:
            self._connection.post_credit(
                WatchCredit(watch=self._watch, generation=self._generation, bytes=self._due_bytes)
            )
            self._due_bytes = 0

    def _tell(self, events: list[Event], size: int, *, is_whole: bool) -> None:
        """``is_whole``: the last revision is told to its end, so one can begin behind it."""
        self._pushed += 1
        self._owed.append(size)
        self._owed_bytes += size
        push = Push(self, self._pushed, events, size)
        slow = [listener for listener in self._listeners if not listener.on_pushed(push)]
        for listener in slow:
            if is_whole and len(self._listeners) > 1:
                alone = Feed(self._calls, self._subject, self._resume_at)
                listener.move_to(alone)
                alone.join(listener)
                self.leave(listener)

    # --- from the connection --------------------------------------------------------------

    def on_events(self, message: WatchEvents, body: Buffer) -> None:
        """A push arrived."""
        if message.generation != self._generation:
            return
        try:
            events = _EVENTS.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._detach(ProtocolError(f"events cannot be read: {error}"))
            return
        skipped, events = events[: self._to_skip], events[self._to_skip :]
        self._to_skip -= len(skipped)
        if self._resume_at is None or self._resume_at <= message.revision:
            self._resume_at = message.revision + 1
            self._told_in_part = 0
        self._told_in_part += sum(event.revision > message.revision for event in events)
        self._backoff.reset()
        self._tell_gap()
        if events:
            self._tell(events, len(body), is_whole=not self._told_in_part)
        else:
            self._return_credit(len(body))

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
            while self.failure is None:
                try:
                    group, connection = await self._attach()
                    await self._stay(group, connection)
                except LogdError as error:
                    self._on_trouble(error)
                finally:
                    self._detach_here()

    def _on_trouble(self, error: LogdError) -> None:
        self.trouble = error
        if isinstance(error, CompactedError) and self._subject.tells_gaps:
            self._resume_at = None
            self._told_in_part = 0
            self._owes_gap = True
            return
        if isinstance(error, UnknownTopicError):
            return  # That broker is behind, or has just started: this topic is never deleted.
        if not error.retriable or isinstance(error, CompactedError):
            self.failure = error
            self._forget()
            self.attached.set()
            for listener in list(self._listeners):
                listener.on_failed(error)

    def _tell_gap(self) -> None:
        """Only once what changes from now on is heard: whoever is told looks at once."""
        if self._owes_gap:
            self._owes_gap = False
            subject = self._subject
            gap = Event(revision=0, kind=subject.kind, name=subject.start, change=GAP)
            for listener in self._listeners:
                listener.on_pushed(Push(self, 0, [gap], 0))

    async def _attach(self) -> tuple[GroupId, Connection]:
        """Watch at whoever leads the namespace's partition now."""
        subject = self._subject
        failures = self._backoff.failures
        delay_s = self._backoff.next_delay_s()
        group = await self._calls.group_of(subject.namespace)
        if failures:
            await anyio.sleep(delay_s)
        connection = await self._calls.find_leader(group, Lane.COORDINATE, failures, self._suspect)
        self._suspect = connection.node
        self._watch = self._routing.next_subscription()
        self._generation += 1
        self._to_skip = self._told_in_part
        self._detached = anyio.Event()
        self._why_detached = None
        self._connection = connection
        self._has_begun = False
        self._due_bytes = 0  # A new watch begins with all that is not owed.
        connection.add_watch(self._watch, self)
        request = WatchRequest(
            watch=self._watch,
            generation=self._generation,
            group=group,
            namespace=subject.namespace,
            kind=subject.kind,
            start=subject.start,
            end=subject.end,
            revision=self._resume_at,
            credit_bytes=max(CREDIT_BYTES - self._owed_bytes, 1),
        )
        answer: Answer = await connection.exchange(request, b"", 2 * ATTEMPT_TIMEOUT_S)
        assert isinstance(answer.message, WatchResponse)
        self._has_begun = True
        self._return_credit(0)
        # Events may have arrived with the answer, and tell more.
        self._resume_at = max(self._resume_at or 0, answer.message.revision + 1)
        self._tell_gap()
        self.trouble = None
        self.attached.set()
        return group, connection

    async def _stay(self, group: GroupId, connection: Connection) -> None:
        """Listen until the broker ends it, or is found out not to lead any more.

        The last who listened may have left when the answer had come and this task had not had its
        turn: then it is detached already, and this ends at once.
        """
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

    def _detach_here(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.remove_watch(self._watch)
        connection.dismiss(UnwatchRequest(watch=self._watch))
